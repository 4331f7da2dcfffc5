"""Deltas: exact round trips, merges equal to the tuned model byte for byte, and every refusal."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from cofitune_fast.errors import CofituneError
from cofitune_fast.models.fingerprint import fingerprint, named_parameters, tensor_digests
from cofitune_fast.models.loading import LoadedModel
from cofitune_fast.regions import BaseInfo, Region, load_delta, merge, read_delta, restore, save_delta
from cofitune_fast.regions import delta as delta_module

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"]


def tune(model, region="ffn.up+ffn.down+attn.q@25%-75%"):
    """Pretend to train: noise on the region's tensors."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in Region.parse(region).parameters(model):
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return Region.parse(region)


@pytest.fixture
def saved(tmp_path):
    """(delta folder, digests of the tuned model): a delta of the tiny llama."""
    model = make_tiny_model()
    base = BaseInfo.of(model, "org/tiny")
    region = tune(model)
    return save_delta(model, region, tmp_path / "delta", base=base), tensor_digests(model)


def rewritten(folder, **changes):
    """Damage a delta's description in a way that only a person could."""
    tensors = load_file(folder / "delta.safetensors")
    content = {**json.loads((folder / "cofitune.json").read_text()), **changes}
    delta_module.save_file(tensors, folder / "delta.safetensors", metadata={"cofitune": json.dumps(content)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_save_load_and_merge_give_the_tuned_bytes(family, dtype, tmp_path, tiny_tokenizer):
    model = make_tiny_model(family, dtype=dtype)
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    before, base = tensor_digests(model), BaseInfo.of(model, str(tmp_path / "base"))
    region = tune(model)
    tuned, trained = tensor_digests(model), {name for name, _ in region.parameters(model)}
    assert {name for name in tuned if tuned[name] != before[name]} == trained
    save_delta(model, region, tmp_path / "delta", base=base)

    fresh = make_tiny_model(family, dtype=dtype)
    assert load_delta(fresh, tmp_path / "delta") is None
    assert tensor_digests(fresh) == tuned

    merged = AutoModelForCausalLM.from_pretrained(merge(tmp_path / "base", tmp_path / "delta", tmp_path / "merged"))
    assert tensor_digests(merged) == tuned
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("hello").input_ids == tiny_tokenizer("hello").input_ids


def test_only_the_regions_tensors_are_stored(saved):
    tensors = load_file(saved[0] / "delta.safetensors")
    expected = dict(Region.parse("ffn.up+ffn.down+attn.q@1-2").parameters(make_tiny_model()))
    assert {name: tensor.shape for name, tensor in tensors.items()} == {n: p.shape for n, p in expected.items()}


def test_description_and_card(tmp_path):
    model = make_tiny_model(dtype=torch.bfloat16)
    base = BaseInfo.of(model, "org/tiny")
    scores = {"base": {"spec": 0.25, "vers": 0.5}, "tuned": {"spec": 0.75, "vers": 0.5}}
    folder = save_delta(model, "mha@1", tmp_path / "delta", base=base, settings={"lr": 4e-5}, scores=scores)
    content = json.loads((folder / "cofitune.json").read_text())
    assert content["region"] == "mha@1"
    assert content["base"] == {"model": "org/tiny", "fingerprint": fingerprint(model), "dtype": "bfloat16"}
    assert set(content["parameters"]) == {name for name, _ in Region.parse("mha@1").parameters(model)}
    assert content["settings"] == {"lr": 4e-5} and content["scores"] == scores and content["format"] == 1
    assert content["versions"]["torch"] and set(content["versions"]) == {"cofitune-fast", "torch", "transformers"}
    info = read_delta(folder)
    assert info.base == base and info.region == "mha@1" and info.settings == {"lr": 4e-5}
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n") and "- cofitune\n" in card and "base_model: org/tiny\n" in card
    assert "|  | spec | vers |" in card and "| tuned | 0.7500 | 0.5000 |" in card


def test_card_keeps_folders_of_the_author_private(tmp_path):
    model = make_tiny_model()
    base = BaseInfo.of(model, str(tmp_path / "tiny-base"))
    card = (save_delta(model, "mha@1", tmp_path / "d", base=base, scores={"uni": 1.5}) / "README.md").read_text()
    assert str(tmp_path) not in card and "base_model:" not in card and "tiny-base" in card
    assert "| uni | 1.5000 |" in card


def test_full_region_stores_tied_tensors_once(tmp_path):
    model = make_tiny_model()
    base = BaseInfo.of(model)
    save_delta(model, tune(model, "full"), tmp_path / "delta", base=base)
    assert "lm_head.weight" not in load_file(tmp_path / "delta" / "delta.safetensors")
    fresh = make_tiny_model()
    load_delta(fresh, tmp_path / "delta")
    assert tensor_digests(fresh) == tensor_digests(model)
    assert fresh.lm_head.weight is fresh.model.embed_tokens.weight


def test_without_base_info_the_frozen_tensors_identify_the_base(tmp_path):
    model = make_tiny_model()
    folder = save_delta(model, tune(model), tmp_path / "delta")
    fresh = make_tiny_model()
    load_delta(fresh, folder)
    assert tensor_digests(fresh) == tensor_digests(model)
    with pytest.raises(CofituneError, match="belongs to the base llama"):
        load_delta(make_tiny_model(seed=1), folder)


def test_keep_base_and_restore(saved):
    model = make_tiny_model()
    before = tensor_digests(model)
    replaced = load_delta(model, saved[0], keep_base=True)
    assert tensor_digests(model) == saved[1]
    assert set(replaced) == set(read_delta(saved[0]).parameters)
    restore(model, replaced)
    assert tensor_digests(model) == before


def test_known_fingerprint_saves_the_hashing(saved, monkeypatch):
    model = make_tiny_model()
    known = fingerprint(model)
    monkeypatch.setattr(delta_module, "base_fingerprint", lambda model: pytest.fail("hashed all the same"))
    load_delta(model, saved[0], base_fingerprint=known)
    with pytest.raises(CofituneError, match="belongs to the base"):
        load_delta(model, saved[0], base_fingerprint="0" * 64)


def test_loading_into_a_compiled_model(saved):
    model = make_tiny_model()
    load_delta(torch.compile(model), saved[0])
    assert tensor_digests(model) == saved[1]


@pytest.mark.parametrize("other", [{"seed": 1}, {"dtype": torch.bfloat16}], ids=["weights", "dtype"])
def test_another_base_is_refused_and_left_alone(saved, other):
    model = make_tiny_model(**other)
    before, known = tensor_digests(model), fingerprint(model)
    base = fingerprint(make_tiny_model())
    words = rf"org/tiny \({base[:12]}, float32\), but the model given is llama \({known[:12]}, \w+\); load that base"
    with pytest.raises(CofituneError, match=words):
        load_delta(model, saved[0])
    assert tensor_digests(model) == before


def test_a_tuned_model_is_no_base(saved):
    model = make_tiny_model()
    load_delta(model, saved[0])
    with pytest.raises(CofituneError, match="load that base, unchanged"):
        load_delta(model, saved[0])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"intermediate_size": 40}, r"does not fit .*: .* is \(.*48.*\) float32 .* model has \(.*40.*\) float32"),
        ({"dtype": torch.bfloat16}, r"does not fit this model: .* float32 in the delta, but the model has .* bfloat16"),
        ({"num_hidden_layers": 2}, "does not fit this model: .* but the model has none of that name"),
    ],
)
def test_tensors_that_do_not_fit(saved, other, words):
    with pytest.raises(CofituneError, match=words):
        load_delta(make_tiny_model(**other), saved[0], base_fingerprint=read_delta(saved[0]).base.fingerprint)


def test_no_delta_there(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CofituneError, match=r"is not a delta: there is no delta\.safetensors in it"):
            load_delta(make_tiny_model(), path)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_file(saved, size):
    file = saved[0] / "delta.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CofituneError, match="is damaged or incomplete"):
        load_delta(make_tiny_model(), saved[0])


def test_a_flipped_bit_is_found_before_anything_is_copied(saved):
    file = saved[0] / "delta.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    model = make_tiny_model()
    before = tensor_digests(model)
    with pytest.raises(CofituneError, match=r"is damaged: the bytes of .* changed"):
        load_delta(model, saved[0])
    assert tensor_digests(model) == before


def test_foreign_safetensors(saved):
    delta_module.save_file({"a": torch.zeros(1)}, saved[0] / "delta.safetensors")
    with pytest.raises(CofituneError, match="does not say which base and region"):
        read_delta(saved[0])


@pytest.mark.parametrize("recorded", [True, False], ids=["base recorded", "base not recorded"])
def test_a_delta_of_parts_needs_no_map_of_roles_to_be_read(tmp_path, recorded):
    roles = {"attn.q": "self_attn.q_proj[0:4/8]", "attn.gate": "self_attn.q_proj[4:8/8]"}
    model = make_tiny_model()
    model.cofitune_roles = roles
    base = BaseInfo.of(model) if recorded else None
    for _, part in Region.parse("attn.gate@1").apply(model):
        part.data.add_(1.0)
    save_delta(model, "attn.gate@1", tmp_path / "delta", base=base)
    stranger, before = make_tiny_model(), fingerprint(make_tiny_model())
    merge(stranger, tmp_path / "delta", tmp_path / "merged")
    assert fingerprint(stranger) == before
    load_delta(stranger, tmp_path / "delta")
    assert fingerprint(stranger) == fingerprint(model)


def test_newer_format_and_broken_description(saved):
    rewritten(saved[0], format=3)
    with pytest.raises(CofituneError, match="has the format 3, this version reads 1 and 2; update"):
        read_delta(saved[0])
    rewritten(saved[0], base={})
    with pytest.raises(CofituneError, match="is damaged: its description"):
        read_delta(saved[0])


def test_an_existing_delta_is_replaced(saved):
    model = make_tiny_model()
    save_delta(model, "mha@1", saved[0], base=BaseInfo.of(model))
    assert read_delta(saved[0]).region == "mha@1"
    assert json.loads((saved[0] / "cofitune.json").read_text())["region"] == "mha@1"
    assert sorted(path.name for path in saved[0].iterdir()) == ["README.md", "cofitune.json", "delta.safetensors"]
    assert [path.name for path in saved[0].parent.iterdir()] == ["delta"]


@pytest.mark.parametrize("stage", ["save_file", "write_json", "write_text"])
@pytest.mark.parametrize("replacing", [True, False], ids=["replacing", "new"])
def test_a_killed_save_leaves_the_old_delta_or_the_new(saved, monkeypatch, stage, replacing, tmp_path):
    folder = saved[0] if replacing else tmp_path / "new"
    model = make_tiny_model()
    base = BaseInfo.of(model, "org/tiny")
    tune(model, "mha@1")

    def killed(*arguments, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(delta_module, stage, killed)
        save_delta(model, "mha@1", folder, base=base)
    if not replacing:
        assert not folder.exists()
        return
    fresh = make_tiny_model()
    load_delta(fresh, folder)
    assert tensor_digests(fresh) == (saved[1] if stage == "save_file" else tensor_digests(model))


def test_a_folder_with_other_content_is_not_overwritten(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(CofituneError, match="exists and is not a delta"):
        save_delta(make_tiny_model(), "mha@1", tmp_path)
    with pytest.raises(CofituneError, match="exists and is not a delta"):
        save_delta(make_tiny_model(), "mha@1", tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == "mine"


def test_an_empty_folder_will_do(tmp_path):
    (tmp_path / "delta").mkdir()
    save_delta(make_tiny_model(), "mha@1", tmp_path / "delta")
    assert read_delta(tmp_path / "delta").region == "mha@1"


def test_settings_must_be_json(tmp_path):
    with pytest.raises(CofituneError, match="not plain JSON values"):
        save_delta(make_tiny_model(), "mha@1", tmp_path / "delta", settings={"dtype": torch.float32})
    assert not (tmp_path / "delta").exists()


@pytest.mark.parametrize("kind", ["model", "loaded"])
def test_merge_into_a_given_model_leaves_it_as_it_was(kind, saved, tmp_path, tiny_tokenizer):
    model = make_tiny_model()
    before = tensor_digests(model)
    base = model if kind == "model" else LoadedModel(model, tiny_tokenizer, "org/tiny")
    merge(base, saved[0], tmp_path / "out", tokenizer=tiny_tokenizer if kind == "model" else None)
    assert tensor_digests(model) == before
    assert tensor_digests(AutoModelForCausalLM.from_pretrained(tmp_path / "out")) == saved[1]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token == "<pad>"


@pytest.mark.parametrize("given", [True, False], ids=["model", "folder"])
def test_merge_in_another_dtype(given, saved, tmp_path, tiny_model_folder):
    model = make_tiny_model()
    merge(model if given else tiny_model_folder, saved[0], tmp_path / "out", dtype="bfloat16")
    assert model.dtype == torch.float32
    load_delta(model, saved[0])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.config.dtype == torch.bfloat16
    for (name, expected), (_, actual) in zip(named_parameters(model), named_parameters(merged), strict=True):
        assert torch.equal(expected.to(torch.bfloat16), actual), name


def test_merge_refuses_a_full_folder(saved, tmp_path, tiny_model):
    with pytest.raises(CofituneError, match="exists and is not empty; choose another folder for the merged model"):
        merge(tiny_model, saved[0], saved[0])


def test_merge_refuses_another_base_and_writes_nothing(saved, tmp_path):
    with pytest.raises(CofituneError, match="belongs to the base org/tiny"):
        merge(make_tiny_model(seed=1), saved[0], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["delta"]


def test_merge_refuses_an_unknown_dtype(saved, tmp_path, tiny_model):
    with pytest.raises(CofituneError, match="Unknown dtype 'int8' for the merged model"):
        merge(tiny_model, saved[0], tmp_path / "out", dtype="int8")


def test_merge_refuses_a_quantised_model(saved, tmp_path, tiny_model):
    tiny_model.config.quantization_config = {"quant_method": "gguf"}
    with pytest.raises(CofituneError, match="is quantised or was read from GGUF by hand"):
        merge(tiny_model, saved[0], tmp_path / "out")


def test_a_failed_merge_puts_the_base_back(saved, tmp_path, tiny_model, monkeypatch):
    before = tensor_digests(tiny_model)
    monkeypatch.setattr(tiny_model, "save_pretrained", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        merge(tiny_model, saved[0], tmp_path / "out")
    assert tensor_digests(tiny_model) == before
    assert [path.name for path in tmp_path.iterdir()] == ["delta"]
