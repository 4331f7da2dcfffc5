"""Deltas as PEFT adapters: PEFT gives the fine-tuned model back, bit for bit or with the error that is stated."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_tiny_model
from transformers import AutoModelForCausalLM

from cofitune_fast.errors import CofituneError
from cofitune_fast.models import load_model
from cofitune_fast.models.fingerprint import tensor_digests
from cofitune_fast.regions import BaseInfo, Region, export_peft, load_delta, save_delta

peft = pytest.importorskip("peft")
IDS = torch.arange(1, 60)[None]
# Largest difference of a logit, when the change is of the adapter's rank: rounding of the factors, or of the weights.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1}


@pytest.fixture
def make(tmp_path, tiny_model_folder):
    """Makes a delta of the tiny base; returns it. change: (name, base weight) -> what is added."""
    def write(region, change, dtype=torch.float32, **more):
        make_tiny_model(dtype=dtype, **more).save_pretrained(tiny_model_folder)
        model = load_model(tiny_model_folder, device="cpu").model
        info = BaseInfo.of(model, str(tiny_model_folder))
        torch.manual_seed(1)
        with torch.no_grad():
            for _, parameter in Region.parse(region).parameters(model):
                parameter.add_(change(parameter))
        return save_delta(model, region, tmp_path / "delta", base=info)
    return write


def anything(parameter):
    return torch.randn_like(parameter) * 0.05


def of_rank_2(parameter):
    return torch.randn(len(parameter), 2) @ torch.randn(2, parameter.shape[1]) * 0.05


def reloaded(base, adapter):
    """The model by PEFT alone: its logits with the adapter, then merged."""
    adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    logits = adapted(IDS).logits
    return logits, adapted.merge_and_unload().eval()


def tuned(base, delta):
    model = load_model(base, device="cpu").model
    load_delta(model, delta)
    return model


@pytest.mark.parametrize("region, dtype, more", [
    ("ffn@25%-75%", torch.bfloat16, {"family": "qwen2"}),
    ("attn.q+attn.k@1", torch.float32, {"family": "qwen2"}),  # with biases
    ("full", torch.bfloat16, {}),  # embedding, tied head and norms too
    ("full", torch.float32, {"tie_word_embeddings": False}),
])
def test_whole_tensors_are_exact(make, tiny_model_folder, tmp_path, region, dtype, more):
    delta = make(region, anything, dtype, **more)
    before = load_model(tiny_model_folder, device="cpu")
    digests = tensor_digests(before.model)
    result = export_peft(before, delta, tmp_path / "adapter")
    assert tensor_digests(before.model) == digests
    assert result.exact and not result.low_rank and "bit for bit" in result.sentence()
    expected = tuned(tiny_model_folder, delta)
    logits, merged = reloaded(tiny_model_folder, result.path)
    for found in (logits, merged(IDS).logits):
        torch.testing.assert_close(found, expected(IDS).logits, rtol=0, atol=0)
    assert tensor_digests(merged) == tensor_digests(expected)
    assert tensor_digests(load_model(result.path, device="cpu").model) == tensor_digests(expected)  # as a base of ours


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_lora_is_the_change_where_its_rank_suffices(make, tiny_model_folder, tmp_path, dtype):
    delta = make("ffn@25%-75%", lambda parameter: of_rank_2(parameter).to(dtype), dtype)
    result = export_peft(tiny_model_folder, delta, tmp_path / "adapter", rank=2)
    expected = tuned(tiny_model_folder, delta)
    logits, merged = reloaded(tiny_model_folder, result.path)
    for found in (logits, merged(IDS).logits):
        torch.testing.assert_close(found, expected(IDS).logits, rtol=0, atol=TOLERANCE[dtype])
    assert {entry.rank for entry in result.low_rank.values()} == {2}
    base = load_model(tiny_model_folder, device="cpu").model.state_dict()
    wanted, found = expected.state_dict(), merged.state_dict()
    missed, total = (sum((one[name].double() - wanted[name].double()).square().sum() for name in result.low_rank)
                     for one in (found, base))
    assert result.error == pytest.approx(float((missed / total).sqrt()), rel=1e-6)  # of PEFT's own merge
    assert result.error < (1e-5 if dtype == torch.float32 else 0.1)
    if dtype == torch.float32:  # a larger rank than the change has is not written
        more = export_peft(tiny_model_folder, delta, tmp_path / "more", rank=9)
        assert {entry.rank for entry in more.low_rank.values()} == {2}


def test_a_rank_too_small_states_the_error_that_peft_s_merge_has(make, tiny_model_folder, tmp_path):
    delta = make("full", anything)
    result = export_peft(tiny_model_folder, delta, tmp_path / "adapter", rank=4)
    base, expected = (dict(model.named_parameters()) for model in (
        load_model(tiny_model_folder, device="cpu").model, tuned(tiny_model_folder, delta)))
    merged = dict(reloaded(tiny_model_folder, result.path)[1].named_parameters())
    missed = total = 0.0
    for name, wanted in ((name, parameter.detach()) for name, parameter in expected.items()):
        change, error = wanted - base[name].detach(), merged[name].detach() - wanted
        missed, total = missed + error.double().square().sum(), total + change.double().square().sum()
        if name not in result.low_rank:
            torch.testing.assert_close(merged[name], wanted, rtol=0, atol=0)  # norms and the embedding, stored whole
            continue
        values = torch.linalg.svdvals(change.double())
        best = (values[4:].square().sum() / values.square().sum()).sqrt()
        assert result.low_rank[name].error == pytest.approx(float(error.norm() / change.norm()), rel=1e-3)
        assert best <= result.low_rank[name].error <= 1.01 * best
    assert result.error == pytest.approx(float((missed / total).sqrt()), rel=1e-3) and result.error > 0.1
    assert not result.exact and f"leaves out {result.error:.2%} of the change" in result.sentence()
    assert result.sentence() in (result.path / "README.md").read_text()
    assert set(result.whole) == set(expected) - set(result.low_rank)
    stored = load_file(result.path / "adapter_model.safetensors")
    assert stored["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"].shape == (4, 32)
    assert json.loads((result.path / "adapter_config.json").read_text())["r"] == 4


def test_what_cannot_be_exported(make, tiny_model_folder, tmp_path):
    delta = make("ffn@1", lambda parameter: torch.zeros_like(parameter))
    with pytest.raises(CofituneError, match="changes nothing in its base"):
        export_peft(tiny_model_folder, delta, tmp_path / "adapter")
    with pytest.raises(CofituneError, match="The rank of the exported adapter is 0"):
        export_peft(tiny_model_folder, delta, tmp_path / "adapter", rank=0)
    with pytest.raises(CofituneError, match="exists and is not empty"):
        export_peft(tiny_model_folder, delta, tiny_model_folder)
    assert not (tmp_path / "adapter").exists()
