"""Regions and deltas beside a quantised part: everything is bound to the full-precision base."""

import json

import pytest
import torch
from tiny import make_tiny_model

from cofitune_fast.data import Encoded
from cofitune_fast.errors import CofituneError
from cofitune_fast.models import load_model, logits_at
from cofitune_fast.models.fingerprint import fingerprint, tensor_digests
from cofitune_fast.regions import BaseInfo, FrozenProof, Region, load_delta, merge, read_delta, save_delta
from cofitune_fast.training import train_region

pytest.importorskip("bitsandbytes", reason="bitsandbytes is missing: pip install '.[quantize]'")

REGION = Region.parse("ffn.up+ffn.down@25%-75%;attn.q@3")
METHODS = ("nf4", "int8")


@pytest.fixture
def base(tmp_path, tiny_tokenizer):
    model = make_tiny_model("qwen2")  # has biases, one of them in the region
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def quantised(base, method, region=REGION):
    return load_model(base, device="cpu", quantize=method, keep=region.modules).model


def train(model, folder, **training):
    rows = [Encoded([4 + i, 60 + i, 70, 71, 72, 2], 2) for i in range(8)]
    base = BaseInfo.of(model, "base")
    before = loss(model, rows)
    result = train_region(model, REGION, rows, folder, {
        "learning_rate": 5e-2, "num_train_epochs": 8, "per_device_train_batch_size": 4, **training,
    }, base=base, pad_token_id=0)
    return base, before, loss(model, rows), result


@torch.no_grad()
def loss(model, rows):
    ids = torch.tensor([row.input_ids for row in rows])
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = mask[:, -1] = False
    logits = logits_at(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, mask)
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 2:].flatten()).item()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_from_training_to_the_merged_model(base, method, checkpointing, tmp_path):
    full = load_model(base, device="cpu").model
    expected = fingerprint(full)
    model = quantised(base, method)
    untouched = {name: digest for name, digest in tensor_digests(model).items()
                 if name not in dict(REGION.parameters(model))}
    info, before, after, result = train(model, tmp_path, gradient_checkpointing=checkpointing)
    assert after < before - 0.5  # as far as the frozen head of so small a model lets it fall
    assert info == BaseInfo("base", expected, "float32")
    assert result.frozen_tensors == len(untouched)
    now = tensor_digests(model)
    assert {name: now[name] for name in untouched} == untouched

    save_delta(model, REGION, tmp_path / "delta", base=info)
    trained = dict(REGION.parameters(model))
    assert len(trained) == 2 * 2 + 2  # up and down of two layers; one query projection and its bias
    load_delta(full, tmp_path / "delta")
    again = quantised(base, method)
    load_delta(again, tmp_path / "delta")
    assert tensor_digests(again) == now
    merge(base, tmp_path / "delta", tmp_path / "merged")
    merged = load_model(tmp_path / "merged", device="cpu").model
    for other in (dict(full.named_parameters()), dict(merged.named_parameters())):
        for name, parameter in trained.items():
            torch.testing.assert_close(other[name], parameter, rtol=0, atol=0)
    assert tensor_digests(merged) == tensor_digests(full)


@pytest.mark.parametrize("method", METHODS)
def test_a_delta_without_a_recorded_base_is_bound_to_the_full_precision_one(base, method, tmp_path):
    model = quantised(base, method)
    save_delta(model, REGION, tmp_path / "delta")
    load_delta(load_model(base, device="cpu").model, tmp_path / "delta")
    load_delta(model, tmp_path / "delta")
    other = make_tiny_model("qwen2", seed=1)
    with pytest.raises(CofituneError, match="belongs to the base"):
        load_delta(other, tmp_path / "delta")


@pytest.mark.parametrize("method", METHODS)
def test_sizes_are_those_of_the_full_model(base, method):
    full, model = load_model(base, device="cpu").model, quantised(base, method)
    assert REGION.describe(model) == REGION.describe(full)
    assert REGION.count(model) == REGION.count(full)
    assert Region.full().count(model) == Region.full().count(full)


@pytest.mark.parametrize(("method", "part"), [("nf4", "absmax"), ("nf4", "offset"), ("nf4", "weight"),
                                              ("int8", "SCB"), ("int8", "weight")])
def test_the_proof_covers_packed_bytes_and_scales(base, method, part):
    model = quantised(base, method)
    proof = FrozenProof.of(model, [name for name, _ in REGION.parameters(model)])
    with torch.no_grad():
        model(input_ids=torch.arange(4, 20)[None])
    proof.check(model)
    weight = model.model.layers[0].self_attn.o_proj.weight
    if part == "weight":
        changed = weight.data
    elif part == "SCB":
        changed = model.model.layers[0].self_attn.o_proj.state.SCB
    else:
        changed = getattr(weight.quant_state, part)
    changed.view(-1)[:1] += 1
    with pytest.raises(CofituneError, match=r"1 of \d+ frozen tensors changed.*layers.0.self_attn.o_proj.weight"):
        proof.check(model)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_quantised_can_neither_be_trained_nor_loaded_into(base, method, tmp_path):
    model = quantised(base, method, Region.parse("ffn.up@1"))
    with pytest.raises(CofituneError, match=r"trains model.layers.\d.mlp.down_proj.weight, which is quantised"):
        REGION.apply(model)
    full = load_model(base, device="cpu").model
    save_delta(full, REGION, tmp_path / "delta", base=BaseInfo.of(full, "base"))
    before = tensor_digests(model)
    with pytest.raises(CofituneError, match=r"load the model with the region .*attn.q@3.* in full precision"):
        load_delta(model, tmp_path / "delta")
    assert tensor_digests(model) == before
    with pytest.raises(CofituneError, match="left to quantise"):
        quantised(base, method, Region.full())


def test_a_quantised_model_is_not_merged(base, tmp_path):
    model = quantised(base, "nf4")
    save_delta(model, REGION, tmp_path / "delta", base=BaseInfo.of(model, "base"))
    with pytest.raises(CofituneError, match="pass its path instead"):
        merge(model, tmp_path / "delta", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_delta_says_only_full_precision(base, tmp_path):
    model = quantised(base, "nf4")
    save_delta(model, REGION, tmp_path / "delta", base=BaseInfo.of(model, "base"), settings={"quantize": "nf4"})
    info = read_delta(tmp_path / "delta")
    assert (info.base.dtype, info.settings) == ("float32", {"quantize": "nf4"})
    content = json.loads((tmp_path / "delta" / "cofitune.json").read_text())
    assert set(content["parameters"]) == set(dict(REGION.parameters(model)))
