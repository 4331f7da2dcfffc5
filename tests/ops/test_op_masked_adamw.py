"""masked_adamw_ against float64, against torch's own chain, and its invariants, for every backend that can run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import pairwise
from ops.ops_cases import (
    BACKENDS,
    BYTES,
    LAYOUTS,
    MASK_DTYPES,
    MASKS,
    MODES,
    OPTIONS,
    SHAPES,
    TOLERANCE,
    assert_is_float64_step,
    assert_same_bits,
    bits,
    in_float64,
    make_case,
    make_mask,
)

from cofitune_fast.ops import grad_norm, masked_adamw_
from cofitune_fast.ops._storage import STORAGES


@pairwise({"storage": STORAGES, "layout, mask_dtype": MASKS, "mode": MODES, "backend": BACKENDS})
def test_matches_float64_element_by_element(storage, layout, mask_dtype, mode, backend):
    case = make_case(storage, layout, mask_dtype=mask_dtype)
    result = case.step(step=3, mask_mode=mode, clip=torch.tensor([0.5, 0.0]), backend=backend)
    assert_is_float64_step(case, result, 3, mode, clip=0.5)
    assert all(torch.equal(a, b) for a, b in zip(result.grads, case.grads, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scale_is_that_of_the_elements_that_move(backend):
    case = make_case("int8", "element", [(4, 700), (1,)])
    case.masks[0][1] = 0  # three blocks in which nothing moves
    case.masks[0][2, :256] = 0
    result = case.step(backend=backend)
    _, m, v = in_float64(case, 3, "update")[0]
    live = case.masks[0] != 0
    for row in range(4):
        for block in range(3):
            columns = slice(256 * block, 256 * (block + 1))
            moves = live[row, columns]
            for which, x in enumerate((m, v)):
                scale = result.scales[0][row, block, which]
                if moves.any():
                    expected = x[row, columns][moves].abs().max() / 1.875
                    torch.testing.assert_close(scale.double(), expected, **TOLERANCE["fp32"])
                else:
                    assert scale == case.scales[0][row, block, which]


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_mask_it_is_torch_adamw(backend):
    case = make_case("fp32")
    ours = case.copy()
    theirs = [p.clone().requires_grad_() for p in case.params]
    for tensors in (ours.exp_avgs, ours.exp_avg_sqs):
        for tensor in tensors:
            tensor.zero_()
    optimizer = torch.optim.AdamW(theirs, foreach=False, **OPTIONS)
    for step in range(1, 6):
        grads = [g * step for g in case.grads]
        masked_adamw_(ours.params, grads, ours.exp_avgs, ours.exp_avg_sqs, step=step, backend=backend, **OPTIONS)
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g
        optimizer.step()
    for p, q in zip(ours.params, theirs, strict=True):
        torch.testing.assert_close(p, q.detach(), **TOLERANCE["fp32"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_one_fused_step_is_clip_then_mask_then_adamw_then_zero(mode, backend):
    case = make_case("fp32", "row")
    chain = [p.clone().requires_grad_() for p in case.params]
    optimizer = torch.optim.AdamW(chain, foreach=False, **OPTIONS)
    for p, g in zip(chain, case.grads, strict=True):
        p.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(chain, 1.0)
    before = [p.detach().clone() for p in chain]
    if mode == "gradient":
        for p, mask in zip(chain, case.masks, strict=True):
            p.grad *= mask
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)

    fused = case.copy()
    for tensor in (*fused.exp_avgs, *fused.exp_avg_sqs):
        tensor.zero_()
    clip = grad_norm(fused.grads, 1.0, backend=backend).clip
    fused = fused.step(step=1, clip=clip, mask_mode=mode, zero_grad=True, backend=backend)
    for p, start, q, g, mask in zip(fused.params, before, chain, fused.grads, case.masks, strict=True):
        expected = q.detach()
        if mode == "update":
            expected = start + mask * (expected - start)
        torch.testing.assert_close(p, expected, **TOLERANCE["fp32"])
        assert not g.any()


@pairwise({"storage": STORAGES, "anchored, kind": [("none", "l2"), ("row", "l2"), ("row", "l1")], "mode": MODES,
           "backend": BACKENDS})
def test_a_mask_of_ones_is_no_mask_bit_for_bit(mode, anchored, kind, storage, backend):
    case = make_case(storage, anchored=anchored)
    plain = case.step(mask_mode=mode, pull_kind=kind, backend=backend)
    generator = torch.Generator().manual_seed(0)
    for layout in LAYOUTS[1:]:
        for dtype in MASK_DTYPES:
            ones = [torch.full_like(make_mask(shape, layout, generator, dtype), 255 if dtype == BYTES else 1)
                    for shape in SHAPES]
            assert_same_bits(plain, replace(case, masks=ones).step(mask_mode=mode, pull_kind=kind, backend=backend))


@pairwise({"layout, mask_dtype": [mask for mask in MASKS if mask[0] in LAYOUTS[2:]], "storage": STORAGES,
           "anchored, kind": [("none", "l2"), ("column", "l2"), ("column", "l1")], "backend": BACKENDS})
def test_where_the_update_mask_is_zero_no_byte_changes(layout, mask_dtype, anchored, kind, storage, backend):
    case = make_case(storage, layout, [(64, 33)], mask_dtype=mask_dtype, anchored=anchored)
    zero = (case.masks[0] == 0).expand(64, 33)
    assert 0 < zero.sum() < zero.numel()
    case.grads[0][zero] = float("nan")
    result = case.step(pull_kind=kind, backend=backend)
    for name, (before,) in ((name, tensors) for name, tensors in case.written().items() if tensors):
        after = getattr(result, name)[0]
        still = zero.all(1) if name == "scales" else zero  # a scale lasts as long as nothing under it moves
        assert torch.equal(bits(before)[still], bits(after)[still])
    assert (result.values(0)[1] != case.values(0)[1])[~zero].double().mean() > 0.9


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_mask_of_zero_still_decays(backend):
    case = make_case("fp32", shapes=[(4, 6)])
    case.exp_avgs[0].zero_()
    case.masks = [torch.zeros(4, 1)]
    result = case.step(mask_mode="gradient", backend=backend)
    torch.testing.assert_close(result.params[0], case.params[0] * (1 - 1e-2 * 0.1), **TOLERANCE["fp32"])
    torch.testing.assert_close(result.exp_avg_sqs[0], case.exp_avg_sqs[0] * 0.95, **TOLERANCE["fp32"])


# the other storages round by the element's place
@pairwise({"layout": ["row", "element"], "storage": ["fp32", "bf16_split"], "backend": BACKENDS})
def test_permuting_rows_commutes_with_the_step(layout, storage, backend):
    case = make_case(storage, layout, [(64, 33)], anchored="row")
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))

    def permuted(case):
        lists = {name: [t[order] for t in tensors] for name, tensors in case.written().items()}
        read = {name: [getattr(case, name)[0][order]] for name in ("masks", "anchors", "pulls")}
        return replace(case, **lists, **read)

    assert_same_bits(permuted(case.step(backend=backend)), permuted(case).step(backend=backend))


@pairwise({"storage": STORAGES, "layout": ["row", "element"], "backend": BACKENDS})
def test_the_skip_flag_makes_the_step_a_no_op_that_still_zeroes(layout, storage, backend):
    case = make_case(storage, layout, anchored="one")
    case.grads[0][0] = float("nan")
    flag = grad_norm(case.grads, 1.0, backend=backend).clip
    assert_same_bits(case, case.step(clip=flag, backend=backend))
    zeroed = case.step(clip=flag, zero_grad=True, backend=backend)
    assert not any(g.any() for g in zeroed.grads)
    assert_same_bits(replace(case, grads=[torch.zeros_like(g) for g in case.grads]), zeroed)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("storage", STORAGES)
def test_rows_with_factor_zero_are_skipped_but_their_gradient_is_zeroed(storage, backend):
    case = make_case(storage, "row", [(64, 33)])
    result = case.step(zero_grad=True, backend=backend)
    assert not result.grads[0].any() and case.grads[0].all()
    assert_is_float64_step(case, result, 3, "update")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("storage", STORAGES)
def test_no_tensors_are_no_work(storage, backend):
    masked_adamw_([], [], [], [], step=1, lr=0.1, storage=storage, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autograd_learns_that_the_parameter_changed(backend):
    p = torch.ones(3, requires_grad=True)
    loss = (p * p).sum()
    masked_adamw_([p], [torch.ones(3)], [torch.zeros(3)], [torch.zeros(3)], step=1, lr=0.1, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
