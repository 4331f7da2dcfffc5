"""Every structure: a region trains its own bytes and no others, and what it learnt survives delta, merge and reload."""

from __future__ import annotations

import pytest
import torch
from families import CHOSEN, FAMILY_TABLE, tiny_family
from transformers import AutoModelForCausalLM

from cofitune_fast.models.fingerprint import named_parameters
from cofitune_fast.optim import MaskedAdamW
from cofitune_fast.regions import (
    BaseInfo,
    FrozenProof,
    Region,
    load_delta,
    merge,
    resolve_layout,
    save_delta,
    whole_name,
)

IDS = torch.tensor([[5, 9, 7, 33, 60, 8], [4, 4, 90, 12, 6, 30]])


def regions_of(layout) -> list[str]:
    """A region of single roles in one layer, and the FFN or mixer of the upper half."""
    layer = layout.num_layers - 1
    last = [cell.role for cell in layout.cells if cell.layer == layer and cell.role != "ffn.router" and not cell.shared]
    single = [role for role in ("attn.k", "attn.q", "ffn.up", "ffn.gate", "mix.in") if role in last]
    return ["+".join(single[::2]) + f"@{layer}", f"all@{layer}"]


def step(model, pairs, masks=None):
    optimizer = MaskedAdamW(pairs, lr=1e-2, masks=masks)
    for _ in range(2):
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        optimizer.step()
        model.zero_grad()


@pytest.mark.parametrize("family", CHOSEN)
def test_train_save_load_merge(family, tmp_path):
    model = tiny_family(family)
    layout = resolve_layout(model)
    if any(cell.shared for cell in layout.cells if cell.layer == layout.num_layers - 1):
        pytest.skip("the last layer's weights are shared")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for text in regions_of(layout):
        for name, parameter in model.named_parameters():
            if "cofitune_parts" not in name:
                parameter.data.copy_(before[name])
        region, base = Region.parse(text), BaseInfo.of(model)
        pairs = region.apply(model)
        proof = FrozenProof.of(model, [name for name, _ in pairs])
        step(model, pairs)
        proof.check(model)
        changed = {name for name, parameter in model.named_parameters()
                   if "cofitune_parts" not in name and not torch.equal(parameter, before[name])}
        assert changed and changed <= {whole_name(name) for name, _ in pairs}
        save_delta(model, region, tmp_path / text / "delta", base=base)
        stranger = tiny_family(family)
        load_delta(stranger, tmp_path / text / "delta")
        assert_same(stranger, model)
    if "wrapper" in FAMILY_TABLE[family].tags:
        return
    merge(tiny_family(family), tmp_path / text / "delta", tmp_path / "merged")
    # Saved by transformers alone, as some families do not come back from a folder as they went in.
    stranger.save_pretrained(tmp_path / "plain")
    merged, plain = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("merged", "plain"))
    assert_same(merged, plain)
    assert_same(merged, model)


def assert_same(model, other):
    theirs = dict(named_parameters(other))
    for name, parameter in named_parameters(model):
        assert torch.equal(parameter, theirs[name]), name
