"""What the storage formats promise over many steps: bf16_split is float32, the rounded ones are right on average."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from cases import pairwise
from ops.ops_cases import (
    BACKENDS,
    LAYOUTS,
    MODES,
    OPTIONS,
    Case,
    assert_same_bits,
    bits,
    make_case,
)

from cofitune_fast.ops import masked_adamw_
from cofitune_fast.ops._storage import STORAGES, new_state, scale_shape
from cofitune_fast.ops.rounding import join


@pairwise({"layout": LAYOUTS, "mode": MODES, "backend": BACKENDS})
def test_bf16_split_takes_the_path_of_fp32_bit_for_bit(layout, mode, backend):
    """From any float32 weights, with the same gradients (of bfloat16) and the same anchors."""
    split = make_case("bf16_split", layout, anchored="row")
    whole = Case("fp32", list(map(join, split.params, split.remainders)), [g.float() for g in split.grads],
                 [m.clone() for m in split.exp_avgs], [v.clone() for v in split.exp_avg_sqs], split.masks,
                 anchors=[a.float() for a in split.anchors], pulls=split.pulls)
    for step in range(1, 11):
        options = {"step": step, "mask_mode": mode, "backend": backend, "clip": torch.tensor([1 / step, 0.0])}
        split, whole = split.step(**options), whole.step(**options)
        joined = list(map(join, split.params, split.remainders))
        assert_same_bits(whole, replace(whole, params=joined, exp_avgs=split.exp_avgs, exp_avg_sqs=split.exp_avg_sqs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_zero_remainder_means_the_weight_itself(backend):
    case = make_case("bf16_split")
    case.remainders = [torch.zeros_like(low) for low in case.remainders]
    result = case.step(lr=0.0, backend=backend)
    for before, after, low in zip(case.params, result.params, result.remainders, strict=True):
        assert torch.equal(bits(before), bits(after)) and not low.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_of_any_payload_stays_one_in_bf16_split(backend):
    """Rounded like a number 0x7FFFFFFF would become -0."""
    case = make_case("bf16_split", shapes=[(40,)])
    words = torch.tensor([0x7FFFFFFF, -1, 0x7FFF8000, 0x7FC00000] * 10, dtype=torch.int32)
    case.params[0] = ((words + 0x8000) >> 16).to(torch.int16).view(torch.bfloat16)
    case.remainders[0] = words.to(torch.int16)
    assert case.values(0)[0].isnan().all()
    result = case.step(backend=backend)
    assert result.params[0].isnan().all() and not result.remainders[0].any() and result.values(0)[0].isnan().all()


COUNT = 1 << 16
ROUNDED = [("bf16_sr", 0), *((storage, index) for storage in ("bf16", "int8") for index in range(3))]  # 0: weight


def repeated(storage: str) -> Case:
    """COUNT elements that all hold the same numbers, none of which a format below float32 can represent after a step;
    in each block of 256 the first has large moments, so that int8 has a scale to share."""
    form, shape = STORAGES[storage], (COUNT // 256, 256)
    state = new_state(torch.empty(shape, dtype=form.weight), storage)
    p = torch.full(shape, 0.7182, dtype=torch.float32).to(form.weight)
    g = torch.full(shape, 0.3141, dtype=torch.float32).to(form.weight)
    g[:, 0] = 1.0
    m, v = state["exp_avg"], state["exp_avg_sq"]
    scales = [torch.full(scale_shape(shape), 0.25)] if form.scaled else []
    m.fill_(37 if form.scaled else 0.02)
    v.fill_(90 if form.scaled else 0.003)
    return Case(storage, [p], [g], [m], [v], [None], scales=scales)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("storage", "index"), ROUNDED)
def test_stochastic_rounding_is_right_on_average(storage, index, backend):
    """Each of 2^16 roundings takes one of the two neighbors of the exact value; the share of the upper one has a
    binomial standard error. 5 of them are passed by chance in 6e-7 of cases; 2^-16 is that of 16 random bits, and 2^-12
    what the rounding of float32 arithmetic may make of a 3-bit or 8-bit unit."""
    case = repeated(storage)
    exact = float32_step(case, index)
    stored = case.step(seed=5, backend=backend).values(0)[index][:, 1:].flatten()
    low, high = stored.min().item(), stored.max().item()
    assert low < exact < high and len(stored.unique()) == 2
    share = (exact - low) / (high - low)
    error = math.sqrt(share * (1 - share) / len(stored))
    assert abs((stored == high).double().mean().item() - share) < 5 * error + 2**-16 + 2**-12


def float32_step(case: Case, index: int) -> float:
    """What an element of `repeated` is before it is rounded: by the same op in float32."""
    p, m, v = (x[:1, 1:2].float().contiguous() for x in case.values(0))
    masked_adamw_([p], [case.grads[0][:1, 1:2].float().contiguous()], [m], [v], step=3, backend="reference", **OPTIONS)
    return (p, m, v)[index].item()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("storage", ["bf16_sr", "bf16", "int8"])
def test_steps_far_below_one_unit_are_not_lost_on_average(storage, backend):
    """Steps of 1/50 of a bfloat16 unit, 100 times: rounding to nearest would never move. With a constant gradient
    m = (1 - b1^t) g and v = (1 - b2^t) g^2, so that each step is lr. 5 standard errors of the mean, and 1 % for what
    rounded moments do to the quotient of the two, which is not linear in them."""
    count = 1 << 14
    p = torch.ones(64, count // 64, dtype=torch.bfloat16)
    state = new_state(p, storage)
    scales = [state["scale"]] if "scale" in state else []
    lr = 2.0**-8 / 50  # just below 1 the unit of bfloat16 is 2^-8
    for step in range(1, 101):
        masked_adamw_([p], [torch.ones_like(p)], [state["exp_avg"]], [state["exp_avg_sq"]], scales=scales, step=step,
                      lr=lr, weight_decay=0.0, storage=storage, backend=backend)
    moved = 1 - p.double()
    assert abs(moved.mean() - 100 * lr) < 5 * moved.std() / math.sqrt(count) + 1e-2 * 100 * lr


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("storage", ["bf16", "int8"])
def test_a_second_moment_falls_though_each_decay_is_below_a_unit(storage, backend):
    """b2 = 0.999 and no gradient: v falls by 1/1000 a step, but a bfloat16 unit is 1/256 of it or more and a code's
    1/16; rounding to nearest would freeze it. The first of each block keeps its v by a gradient, and so the scale.
    The mean after 700 steps is 0.4964 of the start, within 5 standard errors and what that scale moves: 1/1000."""
    shape, steps, betas = (64, 256), 700, (0.9, 0.999)
    state = new_state(torch.zeros(shape, dtype=torch.bfloat16), storage)
    p, g = (torch.zeros(shape, dtype=torch.bfloat16) for _ in range(2))
    case = Case(storage, [p], [g], [state["exp_avg"]], [state["exp_avg_sq"]])
    if storage == "int8":
        case.scales = [torch.full(scale_shape(shape), 1.0)]
        case.exp_avg_sqs[0].fill_(0xE0)
        case.exp_avg_sqs[0][:, 0] = 0xF8
    else:
        case.exp_avg_sqs[0].fill_(0.125)
        case.exp_avg_sqs[0][:, 0] = 1.0
    g[:, 0] = 1.0
    start = case.values(0)[2][:, 1:]
    for step in range(1, steps + 1):
        masked_adamw_(**case.arguments(), **{**OPTIONS, "betas": betas}, step=step, backend=backend)
    left = case.values(0)[2][:, 1:] / start
    assert abs(left.mean() - 0.999**steps) < 5 * left.std() / math.sqrt(left.numel()) + 1e-3
    assert left.std() > 0
