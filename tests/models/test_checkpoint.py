"""What a checkpoint says without being loaded is what the loaded model says."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_tiny_model
from transformers import AutoModelForCausalLM

from cofitune_fast.errors import CofituneError
from cofitune_fast.models import load_model
from cofitune_fast.models.checkpoint import checkpoint_digests, checkpoint_dtype, checkpoint_fingerprint, skeleton
from cofitune_fast.models.fingerprint import fingerprint, tensor_digests

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")


@pytest.fixture
def streamed(monkeypatch):
    """Loading the model fails, so that what passes was read tensor by tensor."""
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_fingerprint_of_every_family(family, dtype, tmp_path, streamed):
    model = make_tiny_model(family, dtype=dtype)
    model.save_pretrained(tmp_path)
    assert checkpoint_fingerprint(tmp_path) == fingerprint(model)
    assert checkpoint_fingerprint(tmp_path, "bfloat16") == fingerprint(model.to(torch.bfloat16))


def test_shards_an_untied_head_and_a_choice_of_tensors(tmp_path, streamed):
    model = make_tiny_model(tie_word_embeddings=False)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    digests = tensor_digests(model)
    assert checkpoint_digests(tmp_path) == digests
    chosen = ["lm_head.weight", "model.layers.2.mlp.up_proj.weight"]
    assert checkpoint_digests(tmp_path, only=chosen) == {name: digests[name] for name in chosen}


def test_a_checkpoint_with_other_names_is_loaded(tmp_path, tiny_tokenizer):
    make_tiny_model().model.save_pretrained(tmp_path)  # no prefix `model.`: transformers renames
    tiny_tokenizer.save_pretrained(tmp_path)
    assert checkpoint_fingerprint(tmp_path) == fingerprint(load_model(tmp_path, device="cpu").model)


def test_a_changed_tensor_changes_the_fingerprint(tmp_path):
    make_tiny_model().save_pretrained(tmp_path)
    before = checkpoint_digests(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    after = checkpoint_digests(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"model.layers.1.mlp.up_proj.weight"}


def test_the_dtype_comes_from_the_config_else_from_the_tensors(tmp_path):
    make_tiny_model(dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert checkpoint_dtype(tmp_path) == torch.bfloat16
    assert checkpoint_dtype(tmp_path, "float32") == checkpoint_dtype(tmp_path, torch.float32) == torch.float32
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert checkpoint_dtype(tmp_path) == torch.bfloat16
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CofituneError, match="does not say its dtype"):
        checkpoint_dtype(tmp_path)


def test_the_skeleton_has_every_name_and_no_weights(tmp_path):
    model = make_tiny_model("qwen2")
    model.save_pretrained(tmp_path)
    bare = skeleton(tmp_path, torch.bfloat16)
    forms = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert {name: parameter.shape for name, parameter in bare.named_parameters()} == forms
    assert all(parameter.is_meta and parameter.dtype == torch.bfloat16 for parameter in bare.parameters())
