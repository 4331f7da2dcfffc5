"""masked_adamw_ in CUDA gives the bits of the eager reference on the CPU: emulated, and on a GPU where there is one."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from cases import pairwise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ops.ops_cases import KINDS, LAYOUTS, MASKS, MODES, OPTIONS, PULLS, Case, assert_same_bits, bits, make_case

from cofitune_fast.ops import masked_adamw_
from cofitune_fast.ops._storage import STORAGES, new_state

pytestmark = pytest.mark.slow  # the emulated extension is compiled first

# Beside the usual ones: rows longer than a chunk of 8192, many short rows, and rows of an even but odd-sized length.
LONG = [(2, 9000), (1, 8192), (3, 8193), (3000, 8), (700, 20), (20_000,)]


def step(case: Case, device: torch.device, **options) -> Case:
    options = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    return case.to(device).step(backend="cuda", **options).to("cpu")


def assert_reference_bits(case: Case, device: torch.device, **options) -> None:
    assert_same_bits(step(case, device, **options), case.step(backend="reference", **options))


@pairwise({"storage": STORAGES, "layout, mask_dtype": MASKS, "mode": MODES, "zero_grad": [False, True]})
def test_the_reference_bits(storage, layout, mask_dtype, mode, zero_grad, device):
    case = make_case(storage, layout, mask_dtype=mask_dtype)
    assert_reference_bits(case, device, mask_mode=mode, seed=11, zero_grad=zero_grad, clip=torch.tensor([0.7, 0.0]))


@pairwise({"storage": STORAGES, "pull_layout": LAYOUTS[1:], "mode, kind": product(MODES, KINDS)})
def test_the_reference_bits_with_anchors(storage, pull_layout, mode, kind, device):
    case = make_case(storage, "element", anchored=pull_layout)
    case.anchors[1] = case.pulls[1] = None  # in one list with others that have an anchor
    assert_reference_bits(case, device, mask_mode=mode, pull_kind=kind, seed=-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("storage", STORAGES)
def test_the_reference_bits_over_several_chunks(storage, layout, device):
    offsets = [2**32 - 9000, 0, 2**32 - 8195, 2**32 - 3, 2**62, 2**33 - 20]
    assert_reference_bits(make_case(storage, layout, LONG), device, offsets=offsets)


@pytest.mark.parametrize("layout", ["row", "element"])
@pytest.mark.parametrize("storage", STORAGES)
def test_the_reference_bits_at_addresses_that_vectors_cannot_use(storage, layout, device):
    """Each kind of tensor in turn begins one element behind an address divisible by 16."""
    case = make_case(storage, layout, [(6, 64), (800,)], anchored="element")
    expected = case.step(backend="reference", seed=3)

    def shifted(tensor):
        buffer = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=device)
        return buffer[1:].view(tensor.shape).copy_(tensor)

    for name in ("params", "grads", "exp_avgs", "exp_avg_sqs", "remainders", "scales", "masks", "anchors", "pulls"):
        if getattr(case, name):
            there = case.copy().to(device)
            there = replace(there, **{name: [shifted(tensor) for tensor in getattr(there, name)]})
            masked_adamw_(**there.arguments(), **OPTIONS, step=3, seed=3, backend="cuda")
            assert_same_bits(there.to("cpu"), expected)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_skip_flag_leaves_all_but_the_gradient(storage, device):
    case = make_case(storage, "row")
    flag = torch.tensor([0.5, 1.0])
    assert_same_bits(step(case, device, clip=flag), case)
    assert_reference_bits(case, device, clip=flag, zero_grad=True)


@pytest.mark.parametrize("storage", STORAGES)
def test_rows_with_factor_0_are_not_read(storage, device):
    """They may hold anything, a NaN scale included, and keep it."""
    case = make_case(storage, "row", [(40, 300)])
    dead = case.masks[0][:, 0] == 0
    assert 0 < dead.sum() < 40
    for tensors in case.written().values():
        if tensors and tensors[0].is_floating_point():
            tensors[0][dead] = float("nan")
    result = step(case, device)
    assert_same_bits(result, case.step(backend="reference"))
    for tensors, before in ((result.written()[name], before) for name, before in case.written().items()):
        if tensors:
            assert torch.equal(bits(tensors[0])[dead], bits(before[0])[dead])
    assert all(torch.isfinite(value[~dead]).all() for value in result.values(0))


SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1e-40, 1e-38, 1e-20, 1.0, -1.0, 3e38, -3e38, float("inf"), -float("inf"),
           float("nan")]


@pairwise({"storage": STORAGES, "layout": LAYOUTS, "kind": KINDS})
def test_denormals_signed_zeros_infinities_and_nan(storage, layout, kind, device):
    """Every pair of special weight and gradient, with new moments and then with those that came of it. What a NaN's
    other bits are, its sign among them, is left open."""
    form, special = STORAGES[storage], torch.tensor(SPECIAL)
    grid = special.repeat(len(SPECIAL), 1)
    weights, grads = grid.to(form.weight), grid.T.to(form.weight).contiguous()
    fresh = new_state(weights, storage)
    case = make_case(storage, layout, [grid.shape], anchored="row")
    case = replace(case, params=[weights], grads=[grads], exp_avgs=[fresh["exp_avg"]],
                   exp_avg_sqs=[fresh["exp_avg_sq"]], remainders=[fresh["remainder"]] if form.remainder else [],
                   scales=[fresh["scale"]] if form.scaled else [], anchors=[weights.T.contiguous()])
    for number in range(1, 4):
        ours = step(case, device, step=number, pull_kind=kind)
        case = case.step(step=number, pull_kind=kind, backend="reference")
        for actual, expected in zip(ours.values(0), case.values(0), strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
            known = ~expected.isnan()
            assert torch.equal(actual.signbit()[known], expected.signbit()[known])


@pytest.mark.parametrize("storage", STORAGES)
def test_a_nan_remains_one(storage, device):
    """Even of all ones, as GPUs make them: a random number added to its bits would make a zero of it."""
    clip = torch.tensor([0x7FFFFFFF, 0], dtype=torch.int32).view(torch.float32)
    result = step(make_case(storage, "none", [(2, 600)]), device, clip=clip)
    assert all(value.isnan().all() for value in result.values(0))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3).map(tuple), max_size=4),
    mask=st.sampled_from(MASKS), pull=st.sampled_from(PULLS), storage=st.sampled_from(list(STORAGES)),
    mode=st.sampled_from(MODES),
    offset=st.sampled_from([0, 2**32 - 37, 2**61]), seed=st.integers(-(2**63), 2**63 - 1), zero_grad=st.booleans(),
)
def test_the_reference_bits_for_any_shapes(shapes, mask, pull, storage, mode, offset, seed, zero_grad, device):
    (layout, mask_dtype), (anchored, kind) = mask, pull
    case = make_case(storage, layout, shapes, mask_dtype=mask_dtype, anchored=anchored)
    assert_reference_bits(case, device, mask_mode=mode, seed=seed, offsets=[offset] * len(shapes), zero_grad=zero_grad,
                          pull_kind=kind)


@pytest.mark.parametrize("count, launches", [(1, 1), (300, 1), (301, 2), (650, 3)])
def test_a_list_is_one_launch_for_300_tensors(emulated, count, launches):
    case = make_case("bf16_sr", "row", [(2, 3)] * count)
    before = emulated.launches()
    assert_reference_bits(case, torch.device("cpu"))
    assert emulated.launches() - before == launches


def test_empty_tensors_take_no_place_in_a_launch(emulated):
    case = make_case("fp32", "none", [(0,), (4,)] * 300)
    before = emulated.launches()
    assert_reference_bits(case, torch.device("cpu"))
    assert emulated.launches() - before == 1
    assert_reference_bits(make_case("fp32", "none", [(0, 5)]), torch.device("cpu"))
    assert emulated.launches() - before == 1

