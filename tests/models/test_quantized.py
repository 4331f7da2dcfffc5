"""A quantised frozen part beside a full-precision region: what is quantised, its gradients, its bytes."""

import sys

import pytest
import torch
from tiny import make_tiny_model
from torch import nn

from cofitune_fast.errors import CofituneError
from cofitune_fast.models import load_model, load_quantized, quantization
from cofitune_fast.models.fingerprint import base_fingerprint, element_count, fingerprint, tensor_digests

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is missing: pip install '.[quantize]'")

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
METHODS = ("nf4", "int8")
KEEP = [f"model.layers.{layer}.mlp.{role}_proj" for layer in (1, 2) for role in ("up", "down")]
# Of the largest gradient of a tensor. On one machine nf4 and bfloat16 were equal to the bit and int8 in float32, which
# multiplies by scale / 127 in another order, to 1e-6; another CPU may sum in another order.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
QUANTISED = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
IDS = torch.arange(4, 44).view(2, 20)


def folder_of(model, path):
    model.save_pretrained(path)
    return path


def dense_twin(quantised, folder):
    """The ordinary model that holds the dequantised weights; to be made before any forward."""
    twin = load_model_only(folder)
    for name, module in quantised.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
            weight = bitsandbytes.functional.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
        else:
            continue
        with torch.no_grad():
            twin.get_submodule(name).weight.copy_(weight)
    return twin


def load_model_only(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def region_gradients(model):
    """Loss and the region's gradients in training mode, as Trainer computes them."""
    model.train().requires_grad_(False)
    weights = {name: model.get_submodule(name).weight.requires_grad_(True) for name in KEEP}
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    model.eval()
    return loss.item(), {name: weight.grad for name, weight in weights.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_a_dense_twin(family, method, dtype, tmp_path):
    """Also after a forward in eval mode: there bitsandbytes packs 4-bit weights anew for CPUs with AVX512-BF16, and its
    product of packed weights passes no gradient on."""
    folder = folder_of(make_tiny_model(family, dtype=dtype), tmp_path)
    model = load_quantized(folder, method, KEEP)
    twin = dense_twin(model, folder)
    with torch.no_grad():
        model(input_ids=IDS)
    expected_loss, expected = region_gradients(twin)
    loss, gradients = region_gradients(model)
    tolerance = TOLERANCE[dtype]
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    for name, gradient in gradients.items():
        atol = tolerance * expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=tolerance, atol=atol)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_everything_but_the_region_is_quantised_and_stays_as_it_is(family, method, tmp_path):
    original = make_tiny_model(family, tie_word_embeddings=False)
    folder = folder_of(original, tmp_path)
    model = load_quantized(folder, method, KEEP)
    linear = {name for name, module in original.named_modules() if type(module) is nn.Linear}
    plain = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    assert plain == {*KEEP, "lm_head"}
    assert {name for name, module in model.named_modules() if isinstance(module, QUANTISED)} == linear - plain
    before = tensor_digests(model)
    for name, digest in tensor_digests(original).items():
        quantised = name.removesuffix(".weight") in linear - plain
        assert (before[name] != digest) == quantised, name
    scales = f"{sorted(linear - plain)[0]}.weight.{'absmax' if method == 'nf4' else 'SCB'}"
    assert scales in before
    with torch.no_grad():
        model(input_ids=IDS)
    region_gradients(model)
    assert tensor_digests(model) == before
    assert base_fingerprint(model) == fingerprint(original) != fingerprint(model)
    counts = [sum(element_count(p) for p in m.parameters()) for m in (original, model)]
    assert counts[0] == counts[1]
    assert quantization(model) == method and quantization(original) == "none"


@pytest.mark.parametrize("method", METHODS)
def test_the_base_fingerprint_notices_a_changed_region(method, tmp_path):
    model = load_quantized(folder_of(make_tiny_model(), tmp_path), method, KEEP)
    base = base_fingerprint(model)
    with torch.no_grad():
        model.get_submodule(KEEP[0]).weight[0, 0] += 1
    assert base_fingerprint(model) != base


def test_the_region_may_be_named_by_a_function_and_everything_may_be_quantised(tmp_path, tiny_tokenizer):
    folder = folder_of(make_tiny_model(), tmp_path)
    tiny_tokenizer.save_pretrained(folder)
    asked = []

    def keep(model):
        asked.append(model)
        return KEEP

    loaded = load_model(folder, dtype="bfloat16", device="cpu", quantize="nf4", keep=keep)
    assert next(asked[0].parameters()).is_meta
    assert not loaded.model.training and loaded.model.dtype == torch.bfloat16
    kept = loaded.model.get_submodule(KEEP[0])
    assert type(kept) is nn.Linear and kept.weight.dtype == torch.bfloat16
    assert loaded.model.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16
    every = load_model(folder, device="cpu", quantize="int8").model
    assert sum(isinstance(module, QUANTISED) for module in every.modules()) == 4 * 7


@pytest.mark.parametrize(("arguments", "message"), [
    (("nf5",), "Unknown quantisation 'nf5'; choose one of int8, nf4"),
    (("nf4", ["model.layers.9.mlp.up_proj"]), "no module named model.layers.9.mlp.up_proj"),
    (("nf4", lambda m: [n for n, x in m.named_modules() if type(x) is nn.Linear]), "Nothing of the model .* is left"),
])
def test_refusals(arguments, message, tmp_path):
    with pytest.raises(CofituneError, match=message):
        load_quantized(folder_of(make_tiny_model(), tmp_path), *arguments)


def test_a_quantised_checkpoint_is_refused(tmp_path):
    folder = folder_of(make_tiny_model(), tmp_path / "full")
    load_quantized(folder, "nf4").save_pretrained(tmp_path / "packed")
    with pytest.raises(CofituneError, match="quantised already; name the full-precision base"):
        load_quantized(tmp_path / "packed", "nf4")


def test_without_bitsandbytes_one_sentence_names_the_extra(tmp_path, monkeypatch, tiny_tokenizer):
    folder = folder_of(make_tiny_model(), tmp_path)
    tiny_tokenizer.save_pretrained(folder)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(CofituneError, match=r"needs bitsandbytes: pip install 'cofitune-fast\[quantize\]'"):
        load_model(folder, device="cpu", quantize="nf4")
