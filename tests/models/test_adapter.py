"""A PEFT adapter as a base: merged as PEFT merges it, or refused in a sentence."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_tiny_model, make_tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from cofitune_fast.errors import CofituneError
from cofitune_fast.files import WriteFailed
from cofitune_fast.models import load_model
from cofitune_fast.models.checkpoint import checkpoint_fingerprint
from cofitune_fast.models.fingerprint import fingerprint, tensor_digests
from cofitune_fast.models.kept import kept_folder
from cofitune_fast.models.loading import plain_folder
from cofitune_fast.regions import BaseInfo, load_delta, merge, save_delta

peft = pytest.importorskip("peft")
IDS = torch.arange(1, 60)[None]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COFITUNE_CACHE", str(tmp_path / "cache"))


def make_adapter(folder, base, config, *, added=0):
    """An adapter as PEFT saves it, with random weights. added: further rows of the embedding, stored with it."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if added:
        model.resize_token_embeddings(model.config.vocab_size + added, mean_resizing=False)
    adapted = peft.get_peft_model(model, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad or (added and "embed" in name):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder, save_embedding_layers=bool(added))
    return folder


def of_peft(folder, base, *, added=0):
    model = AutoModelForCausalLM.from_pretrained(base)
    if added:
        model.resize_token_embeddings(model.config.vocab_size + added, mean_resizing=False)
    return peft.PeftModel.from_pretrained(model, folder).merge_and_unload().eval()


def lora(**more):
    return peft.LoraConfig(**{"r": 3, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **more})


@pytest.fixture
def lora_folder(tmp_path, tiny_model_folder):
    return make_adapter(tmp_path / "my-adapter", tiny_model_folder, lora())


@pytest.mark.parametrize("config, dtype, added", [
    (lora(use_dora=True, use_rslora=True), torch.bfloat16, 0),
    (lora(modules_to_save=["embed_tokens"]), torch.float32, 0),  # the head stays as it was, and is tied no more
    (lora(), torch.float32, 4),
    (peft.LoHaConfig(r=2, target_modules=["up_proj"]), torch.float32, 0),
], ids=["dora-bfloat16", "modules_to_save", "added tokens", "loha"])
def test_the_model_is_the_one_that_peft_merges(tmp_path, tiny_model_folder, config, dtype, added):
    make_tiny_model(dtype=dtype).save_pretrained(tiny_model_folder)
    folder = make_adapter(tmp_path / "my-adapter", tiny_model_folder, config, added=added)
    expected, loaded = of_peft(folder, tiny_model_folder, added=added), load_model(folder, device="cpu")
    torch.testing.assert_close(loaded.model(IDS).logits, expected(IDS).logits, rtol=0, atol=0)
    assert tensor_digests(loaded.model) == tensor_digests(expected)


def test_it_is_merged_once_said_once_and_known_by_the_merged_weights(lora_folder, tiny_model_folder, caplog):
    first = plain_folder(lora_folder)
    stamp = (first / "config.json").stat().st_mtime_ns
    loaded = load_model(lora_folder, device="cpu")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (f"{lora_folder} is an adapter (LORA): it is merged into its base {tiny_model_folder} by peft, in "
                    f"{first}.")
    assert plain_folder(lora_folder, dtype="float32") == first and (first / "config.json").stat().st_mtime_ns == stamp
    assert loaded.source == str(lora_folder)
    assert fingerprint(loaded.model) == checkpoint_fingerprint(first) == fingerprint(
        of_peft(lora_folder, tiny_model_folder))
    assert plain_folder(lora_folder, dtype="bfloat16") != first
    file = tiny_model_folder / "model.safetensors"
    was = file.stat()
    make_tiny_model(seed=1).save_pretrained(tiny_model_folder)  # another base of the same name, size and time
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert file.stat().st_size == was.st_size and plain_folder(lora_folder) != first


def test_a_conversion_that_fails_in_the_temporary_folder_is_made_anew(monkeypatch):
    def refused(*_):
        raise WriteFailed("read-only")

    def fails(folder):
        (folder / "config.json").write_text("half")
        raise CofituneError("broken")

    monkeypatch.setattr("cofitune_fast.models.kept.atomic_folder", refused)
    with pytest.raises(CofituneError, match="broken"):
        kept_folder("adapter", "a", lambda: 1, fails)
    made = kept_folder("adapter", "a", lambda: 1, lambda folder: (folder / "whole").write_text("x"))
    assert [file.name for file in made.iterdir()] == ["whole"]
    assert kept_folder("adapter", "a", lambda: 1, fails) == made


def test_a_delta_on_it_is_merged_to_an_ordinary_folder(lora_folder, tiny_model_folder, tmp_path):
    (tiny_model_folder / "LICENSE").write_text("a licence")
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(lora_folder)
    trained = load_model(lora_folder, device="cpu")
    info = BaseInfo.of(trained.model, trained.source)
    with torch.no_grad():
        trained.model.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    delta = save_delta(trained.model, "ffn.up@1", tmp_path / "delta", base=info)
    out = merge(lora_folder, delta, tmp_path / "merged")
    assert not list(out.glob("adapter*")) and (out / "LICENSE").read_text() == "a licence"
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template  # the adapter's, not the base's
    assert tensor_digests(AutoModelForCausalLM.from_pretrained(out)) == tensor_digests(trained.model)
    again = load_model(lora_folder, device="cpu").model
    load_delta(again, delta)
    assert tensor_digests(again) == tensor_digests(trained.model)


def settings(folder, **values):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def weights(folder, change):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def quantised_base(folder):
    base = folder.parent / "tiny-base" / "config.json"
    base.write_text(json.dumps({**json.loads(base.read_text()), "quantization_config": {"quant_method": "gptq"}}))


def beside_whole_weights(folder):
    shutil.copytree(folder.parent / "tiny-base", folder, dirs_exist_ok=True)


def prompt_learning(folder):
    config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM", base_model_name_or_path="base")
    config.save_pretrained(folder)


@pytest.mark.parametrize("spoil, words", [
    (beside_whole_weights, "holds a model and an adapter .*, and it is not clear which of them is meant"),
    (lambda folder: settings(folder, base_model_name_or_path=None), "does not say its base: write the base's folder"),
    (lambda folder: settings(folder, base_model_name_or_path="org/none"), "The base org/none of the adapter .* is not "
                                                                          "here: fetch it"),
    (lambda folder: settings(folder, base_model_name_or_path=str(folder)), "is an adapter itself; merge that one"),
    (lambda folder: settings(folder, peft_type="NEW"), "cannot be read .*update peft"),
    (lambda folder: settings(folder, task_type="SEQ_CLS"), "is made for SEQ_CLS, not for a causal language model"),
    (quantised_base, r"is quantised \(gptq\), and an adapter is merged into full precision alone: write the full-prec"),
    (prompt_learning, "of the kind PROMPT_TUNING, which works beside the model and cannot be merged"),
    (lambda folder: (folder / "adapter_model.safetensors").unlink(), "is an adapter without weights"),
    (lambda folder: weights(folder, lambda tensors: tensors.pop(min(tensors))), "lacks 1 of its weights, such as "),
    (lambda folder: weights(folder, lambda tensors: tensors.update(
        {"base_model.model.model.layers.9.mlp.down_proj.lora_A.weight": torch.ones(3, 48)})),
     "holds 1 weights that have no place in its base, such as "),
    (lambda folder: weights(folder, lambda tensors: tensors[min(tensors)].fill_(torch.inf)),
     "makes .* of its base infinite or not a number"),
])
def test_what_cannot_be_merged_is_said_in_a_sentence(lora_folder, spoil, words):
    spoil(lora_folder)
    with pytest.raises(CofituneError, match=words):
        load_model(lora_folder)


def test_without_peft_its_extra_is_named(lora_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(CofituneError, match=r"needs the package peft: pip install 'cofitune-fast\[compare\]'"):
        load_model(lora_folder)
