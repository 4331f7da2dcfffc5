"""What people name as a model: taken, or one sentence with the flaw and the way out, before any weight is read."""

from __future__ import annotations

import builtins
import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_tiny_model

from cofitune_fast.errors import CofituneError
from cofitune_fast.models import load_model
from cofitune_fast.models.loading import plain_folder
from cofitune_fast.regions import save_delta


def changed_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def left_over_adapter(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def only_an_adapter(folder):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "org/base", "peft_type": "LORA", "task_type": "CAUSAL_LM"}')


def a_missing_shard(folder):
    make_tiny_model().save_pretrained(folder, max_shard_size="40KB")
    (folder / "model.safetensors").unlink()
    (folder / "model-00002-of-00005.safetensors").unlink()


def a_pointer(folder, name="model.safetensors"):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")


def cut_off(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def no_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


def elsewhere(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')


@pytest.mark.parametrize("spoil, words", [
    (left_over_adapter, r"a model and an adapter \(adapter_config.json\).*: merge the adapter .* or remove"),
    (only_an_adapter, r"The base org/base of the adapter .* is not here: fetch it, or write its folder"),
    (a_missing_shard, r"lacks 1 of its 5 files of weights, such as model-00002-of-00005.safetensors: the download"),
    (a_pointer, r"model.safetensors is a Git LFS pointer and not the file itself: run `git lfs pull`"),
    (lambda folder: a_pointer(folder, "tokenizer.json"), r"tokenizer.json is a Git LFS pointer"),
    (cut_off, r"model.safetensors have [\d,]+ bytes, and by their header they have [\d,]+: the download"),
    (no_weights, r"has a config.json but no weights"),
    (no_tokenizer, r"has no tokenizer \(tokenizer.json or tokenizer.model\): copy"),
    (elsewhere, r"index.json is broken \(a file of another folder\)"),
    *((lambda folder, method=method: changed_config(folder, quantization_config={"quant_method": method}),
       rf"is quantised \({method}\).*: name the full-precision checkpoint") for method in ("gptq", "fp8", "mxfp4")),
    (lambda folder: changed_config(folder, text_config={"quantization_config": {"load_in_4bit": True}}),
     r"is quantised \(bitsandbytes\)"),
    (lambda folder: changed_config(folder, model_type="brand_new", auto_map={"AutoConfig": "c.C"}),
     r"by code which the model brings along, and such code is never run here"),
])
def test_what_is_no_whole_model_is_said_in_a_sentence(tiny_model_folder, monkeypatch, spoil, words):
    monkeypatch.setattr(builtins, "input", lambda *prompt: pytest.fail("asked on the terminal"))
    spoil(tiny_model_folder)
    with pytest.raises(CofituneError, match=words):
        load_model(tiny_model_folder)


def test_code_beside_a_model_that_transformers_knows_is_not_run(tiny_model_folder, monkeypatch):
    monkeypatch.setattr(builtins, "input", lambda *prompt: pytest.fail("asked on the terminal"))
    changed_config(tiny_model_folder, auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})
    (tiny_model_folder / "code.py").write_text("raise SystemExit('run')")
    assert load_model(tiny_model_folder).model


def test_the_folder_that_was_probably_meant_is_named(tmp_path, tiny_model_folder):
    hub = tmp_path / "models--org--tiny"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("abc")
    (hub / "snapshots").mkdir()
    (hub / "snapshots" / "000").mkdir()
    tiny_model_folder.rename(hub / "snapshots" / "abc")
    with pytest.raises(CofituneError, match=r"the hub's cache of org/tiny; name org/tiny or .*/snapshots/abc\."):
        plain_folder(hub)
    with pytest.raises(CofituneError, match=r"the model is one level deeper; name .*/snapshots/abc\."):
        plain_folder(hub / "snapshots")
    (hub / "snapshots" / "abc" / "original").mkdir()
    with pytest.raises(CofituneError, match=r"the model is one level higher; name .*/snapshots/abc\."):
        plain_folder(hub / "snapshots" / "abc" / "original")
    for number in (9, 10):
        (tmp_path / "run" / f"checkpoint-{number}").mkdir(parents=True)
        (tmp_path / "run" / f"checkpoint-{number}" / "config.json").write_text("{}")
    with pytest.raises(CofituneError, match=r"name .*/run/checkpoint-10 \(one of 2\)\."):
        plain_folder(tmp_path / "run")


def test_a_delta_and_the_folder_of_a_run_name_the_base(tmp_path):
    save_delta(make_tiny_model(), "mha@1", tmp_path / "run" / "delta")
    with pytest.raises(CofituneError, match=r"it is a delta; name its base as the model"):
        plain_folder(tmp_path / "run" / "delta")
    with pytest.raises(CofituneError, match=r"the folder of a run, with the delta .*/run/delta; name the base"):
        plain_folder(tmp_path / "run")


def test_old_weights_beside_safetensors_change_nothing(tiny_model_folder):
    other = {name: torch.zeros_like(tensor) for name, tensor in load_file(
        tiny_model_folder / "model.safetensors").items()}
    torch.save(other, tiny_model_folder / "pytorch_model.bin")
    assert load_model(tiny_model_folder).model.lm_head.weight.any()
