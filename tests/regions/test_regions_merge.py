"""Merged folders: the base's own files but for the trained tensors, whole or not there at all."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from cofitune_fast.errors import CofituneError
from cofitune_fast.files import WriteFailed
from cofitune_fast.models import load_model
from cofitune_fast.models.fingerprint import tensor_digests
from cofitune_fast.regions import BaseInfo, Region, load_delta, merge, read_delta, save_delta

REGION = "ffn.up+attn.q@1"


def make_base(folder, tokenizer, *, shard="40KB", dtype=torch.float32, **more):
    """A model folder as people bring it: shards, a template of its own, settings that transformers would rewrite."""
    model = make_tiny_model(dtype=dtype, **more)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "a_key_of_its_own": [1, 2]}))
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    del tokens["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, "tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6, "eos_token_id": [2]}')
    (folder / "chat_templates").mkdir()
    (folder / "chat_templates" / "tool.jinja").write_text("{{ messages }}")
    (folder / "LICENSE.md").write_text("a licence")
    (folder / "README.md").write_text("the base's card, with its scores")
    (folder / "trainer_state.json").write_text("{}")
    return folder


def make_delta(base, folder, region=REGION, *, apply=False, **load):
    """A delta of `base`, as if trained; returns it and the digests of the model with it. apply: as a run does."""
    model = load_model(base, **load).model
    info = BaseInfo.of(model, str(base))
    with torch.no_grad():
        parsed = Region.parse(region)
        for _, parameter in parsed.apply(model) if apply else parsed.parameters(model):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).to(parameter.dtype))
    return save_delta(model, region, folder, base=info), tensor_digests(model)


@pytest.fixture
def base(tmp_path, tiny_tokenizer):
    return make_base(tmp_path / "base", tiny_tokenizer)


@pytest.fixture
def delta(base, tmp_path):
    return make_delta(base, tmp_path / "delta")[0]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("given", ["folder", "loaded", "model"])
def test_only_the_trained_tensors_differ_from_the_base(base, tmp_path, given):
    delta, tuned = make_delta(base, tmp_path / "delta")
    loaded = load_model(base)
    out = merge({"folder": base, "loaded": loaded, "model": loaded.model}[given], delta, tmp_path / "out")
    was, now = contents(base), contents(out)
    weights = {name for name in was if name.endswith(".safetensors")}
    assert len(weights) > 2
    assert was.keys() - now.keys() == {"trainer_state.json"} and not now.keys() - was.keys()
    assert {name for name in now if now[name] != was[name]} <= weights | {"README.md"}
    trained = set(read_delta(delta).parameters)
    for name in weights:
        before, after = load_file(base / name), load_file(out / name)
        assert list(before) == list(after)
        assert {key for key in before if not torch.equal(before[key], after[key])} == trained & before.keys()
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert tensor_digests(merged) == tuned and merged.config.use_cache
    assert AutoTokenizer.from_pretrained(out).pad_token is None
    assert "the base's card" not in (out / "README.md").read_text() and "LICENSE.md" in (out / "README.md").read_text()


def test_the_model_need_not_be_loaded(base, delta, tmp_path, monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))
    merge(base, delta, tmp_path / "out")


def test_parts_of_tensors_and_tensors_without_a_place_in_the_model(tmp_path, tiny_tokenizer):
    base = make_base(tmp_path / "base", tiny_tokenizer, shard="1GB", tie_word_embeddings=True)
    tensors = load_file(base / "model.safetensors")
    tensors |= {"lm_head.weight": tensors["model.embed_tokens.weight"].clone(), "mtp.weight": torch.ones(3)}
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    roles = {"attn.q": "self_attn.q_proj[0:4/8]", "attn.gate": "self_attn.q_proj[4:8/8]"}
    part, tuned = make_delta(base, tmp_path / "part", "attn.gate@1", roles=roles)
    assert read_delta(part).parts
    assert tensor_digests(load_model(merge(base, part, tmp_path / "out")).model) == tuned
    whole, tuned = make_delta(base, tmp_path / "whole", "full")
    merged = load_file(merge(base, whole, tmp_path / "out-2") / "model.safetensors")
    assert torch.equal(merged["mtp.weight"], torch.ones(3))
    assert torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    assert not torch.equal(merged["lm_head.weight"], tensors["lm_head.weight"])
    assert tensor_digests(load_model(tmp_path / "out-2").model) == tuned


def test_a_base_trained_in_another_dtype_than_it_is_stored_in_is_written_in_that_dtype_and_said(
    tmp_path, tiny_tokenizer, caplog
):
    base = make_base(tmp_path / "base", tiny_tokenizer, dtype=torch.bfloat16)
    delta, tuned = make_delta(base, tmp_path / "delta", dtype="float32")
    out = merge(base, delta, tmp_path / "out")
    was, now = (json.loads((folder / "config.json").read_text()) for folder in (base, out))
    assert {key for key in now if now[key] != was[key]} == {"dtype"} and was.keys() == now.keys()
    assert "dtype is float32, was bfloat16" in caplog.text and "dtype is float32" in (out / "README.md").read_text()
    assert tensor_digests(load_model(out).model) == tuned
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        tensor.numel() * 4 for file in out.glob("*.safetensors") for tensor in load_file(file).values())


def test_other_names_in_the_files_than_in_the_model(tmp_path, tiny_tokenizer):
    """Files of the bare decoder, which transformers reads under a prefix, and files that are not safetensors."""
    base = make_base(tmp_path / "base", tiny_tokenizer, shard="1GB")
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    delta, tuned = make_delta(base, tmp_path / "delta")
    out = merge(base, delta, tmp_path / "out")
    assert tensor_digests(load_model(out).model) == tuned
    (base / "model.safetensors").unlink()
    torch.save(tensors, base / "pytorch_model.bin")
    for merged in (out, merge(base, delta, tmp_path / "out-2")):
        assert tensor_digests(load_model(merged).model) == tuned
        for name in ("config.json", "tokenizer_config.json", "generation_config.json", "chat_templates/tool.jinja"):
            assert (merged / name).read_bytes() == (base / name).read_bytes()
    assert not (tmp_path / "out-2" / "pytorch_model.bin").exists()


def test_experts_that_are_one_tensor_in_the_model_and_many_in_the_files(tmp_path, tiny_tokenizer):
    """transformers joins them when it loads; a part of the joined tensor is trained."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    Qwen3MoeForCausalLM(Qwen3MoeConfig(
        vocab_size=260, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
    )).save_pretrained(tmp_path / "base", max_shard_size="40KB")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    delta, tuned = make_delta(tmp_path / "base", tmp_path / "delta", "ffn.up@1", apply=True)
    out = merge(tmp_path / "base", delta, tmp_path / "out")
    assert tensor_digests(load_model(out).model) == tuned
    was, now = contents(tmp_path / "base"), contents(out)
    assert was.keys() == now.keys() - {"README.md"} and was["config.json"] == now["config.json"]
    changed = {name for file in was if file.endswith(".safetensors")
               for name, tensor in load_file(tmp_path / "base" / file).items()
               if not torch.equal(tensor, load_file(out / file)[name])}
    assert changed == {f"model.layers.1.mlp.experts.{number}.up_proj.weight" for number in range(4)}


def test_a_second_merge_and_other_bases_are_refused_with_nothing_written(base, delta, tmp_path, tiny_tokenizer):
    out = merge(base, delta, tmp_path / "out")
    with pytest.raises(CofituneError, match=r"holds the tensors of the delta .* already; name the base"):
        merge(out, delta, tmp_path / "out-2")
    other = make_base(tmp_path / "other", tiny_tokenizer, seed=1)
    with pytest.raises(CofituneError, match="belongs to the base"):
        merge(other, delta, tmp_path / "out-2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "delta", "other", "out"]


def test_a_model_with_adapters_is_refused(base, delta, tmp_path):
    model = load_model(base).model
    model.peft_config = {}
    with pytest.raises(CofituneError, match="has adapters, which a merged folder would lack: merge them first"):
        merge(model, delta, tmp_path / "out")


def test_a_link_stays_and_an_empty_folder_is_taken(base, delta, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    merge(base, delta, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and load_model(tmp_path / "disk").model
    (tmp_path / "dangling").symlink_to(tmp_path / "not" / "yet")
    merge(base, delta, tmp_path / "dangling")
    assert (tmp_path / "not" / "yet" / "config.json").is_file()
    assert not list(tmp_path.glob(".*")) and not list((tmp_path / "not").glob(".*"))


@pytest.fixture
def volume(tmp_path):
    """A function that mounts an empty file system of some bytes; only where tests run as root and may mount."""
    mounted = []

    def mount(name, size):
        folder = tmp_path / name
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("nothing may be mounted here")
        mounted.append(folder)
        return folder

    if not hasattr(os, "getuid") or os.getuid():
        pytest.skip("only root may mount")
    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_an_empty_volume_is_filled(base, delta, tmp_path, volume):
    folder = volume("volume", "4m")
    (folder / "lost+found").mkdir()
    tuned = tensor_digests(load_model(merge(base, delta, folder)).model)
    model = load_model(base).model
    load_delta(model, delta)
    assert tuned == tensor_digests(model)
    assert not list(folder.glob(".*")) and not list(tmp_path.glob(".*"))


def test_a_full_disk_is_said_before_a_merge_and_a_delta_goes_elsewhere(base, delta, tmp_path, volume, monkeypatch):
    monkeypatch.setenv("COFITUNE_CACHE", str(tmp_path / "cache"))
    folder = volume("volume", "64k")
    with pytest.raises(CofituneError, match=rf"no room for the merged model in {folder}.*: 1.\d+ MB are needed and .* "
                                            rf"free in {folder}; make room there"):
        merge(base, delta, folder / "out")
    model = load_model(base).model
    with pytest.raises(WriteFailed, match=r"volume.*needed and .* free in .* The delta is kept in ") as failed:
        save_delta(model, "full", folder / "delta")
    kept = str(failed.value).partition("is kept in ")[2].partition(": move it")[0]
    assert set(read_delta(kept).parameters) == {name for name, _ in model.named_parameters()}
    assert kept.startswith(str(tmp_path / "cache")) and not list(folder.rglob("*"))


def test_nothing_is_left_of_a_merge_whose_disk_fills(base, delta, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("cofitune_fast.regions.merging.rewrite", full)
    with pytest.raises(WriteFailed, match=r"out cannot be written \(No space left on device\): .* needed and .* free"):
        merge(base, delta, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "delta"]
