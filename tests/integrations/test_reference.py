"""The reference model: what it shares, what it copies, and that it stays where the model was."""

from __future__ import annotations

import pytest
import torch
from families import tiny_family
from tiny import make_tiny_model

import cofitune_fast as cf
from cofitune_fast.models.fingerprint import named_parameters
from cofitune_fast.models.quantized import load_quantized
from cofitune_fast.regions import whole_name

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def storages(model):
    """{address: bytes} of all that the model's tensors, and the states of quantised layers, lie in."""
    held = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        for owner in (module, *(vars(module).get(key) for key in ("state", "quant_state"))):
            held += [value for value in vars(owner).values() if isinstance(value, torch.Tensor)] if owner else []
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}


def quantised(method):
    def load(folder):
        pytest.importorskip("bitsandbytes")
        make_tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(folder)
        return load_quantized(folder, method, cf.Region.parse("ffn@25%-75%").modules)

    return load


@pytest.mark.parametrize(("make", "region"), [
    (lambda folder: make_tiny_model(), "ffn@25%-75%"),
    (lambda folder: make_tiny_model(), "full"),
    (lambda folder: tiny_family("phi3"), "attn.q+ffn.up@all"),  # parts of fused tensors
    (quantised("nf4"), "ffn@25%-75%"),
    (quantised("int8"), "ffn@25%-75%"),
], ids=["plain", "full", "parts", "nf4", "int8"])  # fmt: skip
def test_the_reference_costs_the_region_and_keeps_its_distributions(make, region, tmp_path):
    model, region = make(tmp_path), cf.Region.parse(region)
    pairs = region.apply(model)
    wholes = {whole_name(name) for name, _ in pairs}
    own = sum(tensor.untyped_storage().nbytes() for name, tensor in named_parameters(model) if name in wholes)
    own += sum(buffer.untyped_storage().nbytes() for buffer in model.buffers() if buffer.is_floating_point())
    with torch.no_grad():
        expected = model.eval()(IDS).logits
    reference = cf.reference_model(model.train(), region)

    mine, theirs = storages(model), storages(reference)
    assert sum(size for place, size in theirs.items() if place not in mine) == own
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for _, p in pairs}
    assert not any(p.requires_grad for p in reference.parameters())
    assert model.training and not any(module.training for module in reference.modules())

    model(IDS, labels=IDS).loss.backward()
    cf.MaskedAdamW(pairs, lr=0.1).step()
    with torch.no_grad():
        assert not torch.equal(model.eval()(IDS).logits, expected)
        assert torch.equal(reference(IDS).logits, expected)


def test_what_is_shared_is_frozen_and_what_is_prepared_is_refused():
    model = make_tiny_model()
    reference = cf.reference_model(model, "ffn@25%-75%")  # no region was applied before
    shared = {id(p) for p in model.parameters()} & {id(p) for p in reference.parameters()}
    assert shared and {id(p) for p in model.parameters() if not p.requires_grad} == shared

    forward = model.forward
    model.forward = lambda **batch: forward(**batch)
    with pytest.raises(cf.CofituneError, match="before the trainer"):
        cf.reference_model(model, "ffn@25%-75%")
