"""The pull of masked_adamw_ toward an anchor: L2 and L1 against float64, for every backend that can run on the CPU."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from cases import pairwise
from ops.ops_cases import (
    BACKENDS,
    KINDS,
    LAYOUTS,
    MODES,
    OPTIONS,
    Case,
    assert_is_float64_step,
    bits,
    make_case,
)

from cofitune_fast.ops import masked_adamw_
from cofitune_fast.ops._storage import STORAGES

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_storage = pytest.mark.parametrize("storage", STORAGES)


def at_rest(p: torch.Tensor, anchor: torch.Tensor, pulls: torch.Tensor, storage: str = "fp32") -> Case:
    """A case without gradient and moments: what moves p is the pull alone."""
    case = make_case(storage, shapes=[p.shape])
    zeros = {name: [t.zero_() for t in tensors] for name, tensors in case.copy().written().items()}
    return replace(case, **{**zeros, "params": [p]}, masks=[None], anchors=[anchor], pulls=[pulls])


# Whether a mask damps the pull too is up to its mode and the pull's kind: the three go together.
@pairwise({"layout, mode, kind": product(["none", "row", "element"], MODES, KINDS), "pull_layout": LAYOUTS[1:],
           "storage": STORAGES, "backend": BACKENDS})
def test_it_matches_float64_element_by_element(storage, pull_layout, layout, mode, kind, backend):
    case = make_case(storage, layout, anchored=pull_layout)
    case.anchors[1] = case.pulls[1] = None  # some tensors have an anchor and others have none
    result = case.step(mask_mode=mode, pull_kind=kind, zero_grad=True, clip=torch.tensor([0.5, 0.0]), backend=backend)
    assert_is_float64_step(case, result, 3, mode, clip=0.5, pull_kind=kind)
    assert not any(g.any() for g in result.grads)


@every_backend
def test_l2_draws_by_its_strength_and_never_overshoots(backend):
    """p <- p - f (p - w0) with f = min(1, lr s), in float32. So an f of 1 lands within one rounding of the anchor: on
    p - (p - w0)."""
    p, anchor = torch.randn(2, 1000, 7, generator=torch.Generator().manual_seed(0))
    pulls = torch.tensor([0.0, 1.0, 5.0, 9.0, 10.0, 1e30, float("inf")]).view(1, 7)
    moved = at_rest(p, anchor, pulls).step(lr=0.1, weight_decay=0.0, backend=backend).params[0]
    factor = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0, 1.0, 1.0])
    torch.testing.assert_close(moved, p - factor * (p - anchor), rtol=1e-6, atol=1e-6)
    assert torch.equal(moved[:, 0], p[:, 0])
    assert torch.equal(moved[:, 5:], (p - (p - anchor))[:, 5:])
    assert (moved[:, 5:] - anchor[:, 5:]).abs().le(2**-23 * torch.maximum(p.abs(), anchor.abs())[:, 5:]).all()


@every_backend
@every_storage
def test_l1_comes_nearer_by_lr_times_its_strength_and_lands_on_the_anchor_to_the_bit(storage, backend):
    weight = STORAGES[storage].weight
    p, anchor = torch.randn(2, 1000, 7, generator=torch.Generator().manual_seed(0)).to(weight)
    anchor[:200] = p[:200] + anchor[:200] * 1e-2
    p[:10] = anchor[:10]
    pulls = torch.tensor([0.0, 0.01, 0.1, 1.0, 5.0, 100.0, float("inf")]).view(1, 7)
    before = at_rest(p, anchor, pulls, storage)
    result = before.step(lr=0.1, weight_decay=0.0, pull_kind="l1", backend=backend)
    lands = (p.double() - anchor.double()).abs() <= 0.1 * pulls.float()  # compared in float32, as lr pull is rounded
    assert 0.3 < lands.double().mean() < 0.9
    assert torch.equal(bits(result.params[0])[lands], bits(anchor)[lands])
    if storage == "bf16_split":
        assert not result.remainders[0][lands].any()
    assert_is_float64_step(before, result, 3, "update", lr=0.1, weight_decay=0.0, pull_kind="l1")


@every_backend
@every_storage
def test_l1_never_crosses_the_anchor(storage, backend):
    """Whatever gradient and moments do: the weight lies between where it were without a pull and the anchor. So it does
    in bfloat16, as rounding by the same random number keeps the order, and the anchor is a bfloat16."""
    case = make_case(storage, "row", [(64, 700)], anchored="element")
    case.pulls = [pull * 0.05 for pull in case.pulls]
    free = replace(case, anchors=None, pulls=None).step(backend=backend).values(0)[0]
    pulled, anchor = case.step(pull_kind="l1", backend=backend).values(0)[0], case.anchors[0].double()
    assert ((free - anchor) * (pulled - anchor) >= 0).all()
    assert ((pulled - anchor).abs() <= (free - anchor).abs()).all()
    assert ((pulled == anchor) & (free != anchor)).any() and (pulled != anchor).any()


@every_backend
@every_storage
def test_l1_keeps_a_weight_at_its_anchor_while_the_step_is_below_the_threshold(storage, backend):
    """An Adam step of constant gradients is lr: less than lr pull where the pull is above 1. The moments go on."""
    case = make_case(storage, shapes=[(4, 300)])
    fresh = at_rest(case.params[0], case.params[0].clone(), torch.tensor([[0.5], [0.99], [1.01], [2.0]]), storage)
    fresh.grads = case.grads
    result = fresh.step(step=1, weight_decay=0.0, pull_kind="l1", backend=backend)
    assert torch.equal(bits(result.params[0][2:]), bits(fresh.params[0][2:]))
    assert all(not remainder[2:].any() for remainder in result.remainders)
    moved = result.values(0)[0] - fresh.values(0)[0]
    assert (moved[0] != 0).double().mean() > (0.9 if storage in ("fp32", "bf16_split") else 0.4)
    assert (result.values(0)[1] != 0).double().mean() > 0.9


@pairwise({"storage": STORAGES, "mode": MODES, "kind": KINDS, "backend": BACKENDS})
def test_rows_of_strength_zero_move_as_without_a_pull(storage, mode, kind, backend):
    case = make_case(storage, "element", [(64, 300)], anchored="row")
    zero = case.pulls[0][:, 0] == 0
    assert 0 < zero.sum() < 64
    pulled = case.step(mask_mode=mode, pull_kind=kind, backend=backend).values(0)[0]
    free = replace(case, anchors=None, pulls=None).step(mask_mode=mode, backend=backend).values(0)[0]
    assert torch.equal(pulled[zero], free[zero])
    assert (pulled != free)[~zero].any(1).all()


@pairwise({"storage": STORAGES, "mode": MODES, "kind": KINDS, "backend": BACKENDS})
def test_tensors_without_an_anchor_have_the_bits_of_a_call_without_any(storage, mode, kind, backend):
    case = make_case(storage, "row", [(5, 300), (17,), (3, 5)], anchored="row")
    free = replace(case, anchors=None, pulls=None)
    case.anchors, case.pulls = [None, case.anchors[1], None], [None, case.pulls[1], None]
    pulled = case.step(mask_mode=mode, pull_kind=kind, backend=backend)
    free = free.step(mask_mode=mode, backend=backend)
    for name, tensors in pulled.written().items():
        for index in (0, 2) if tensors else ():
            assert torch.equal(bits(tensors[index]), bits(getattr(free, name)[index]))


@pairwise({"storage": STORAGES, "mode": MODES, "backend": BACKENDS})
def test_l2_toward_zero_is_weight_decay(storage, mode, backend):
    """A strength of 0.25 with anchor 0 in place of a decay of 0.25. Apart from the order of the sums; with stochastic
    rounding a last bit may then go the other way."""
    case = make_case(storage, "row")
    decayed = case.step(mask_mode=mode, weight_decay=0.25, backend=backend)
    case.anchors = [torch.zeros_like(p) for p in case.params]
    case.pulls = [torch.full((1,) * p.dim(), 0.25) for p in case.params]
    pulled = case.step(mask_mode=mode, weight_decay=0.0, backend=backend)
    assert_is_float64_step(replace(case, anchors=None, pulls=None), pulled, 3, mode, weight_decay=0.25)
    for index in range(len(case.params)):
        ours, theirs = pulled.values(index)[0], decayed.values(index)[0]
        same = (ours - theirs).abs() <= 1e-6 * theirs.abs() + 1e-8
        assert same.all() if storage in ("fp32", "bf16_split") else same.double().mean() > 0.99 or same.numel() == 0


@pairwise({"storage": ["bf16_split", "bf16_sr", "bf16", "int8"], "kind": KINDS, "backend": BACKENDS})
def test_a_pull_far_below_half_a_unit_of_bfloat16_is_not_lost(storage, kind, backend):
    """A unit is 2^-8 here; a step of 2^-16 would be rounded away each time. 256 steps are one unit, on average."""
    p, anchor = torch.full((8, 512), 0.75).bfloat16(), torch.full((8, 512), 0.5).bfloat16()
    strength = 2.0**-16 / (0.25 if kind == "l2" else 1.0)
    case = at_rest(p, anchor, torch.full((1, 1), strength), storage)
    for step in range(1, 257):
        masked_adamw_(**case.arguments(), **{**OPTIONS, "lr": 1.0, "weight_decay": 0.0}, step=step, pull_kind=kind,
                      backend=backend)
    moved = 0.75 - case.values(0)[0].mean().item()
    assert moved == pytest.approx(2.0**-8, rel=0.1)
