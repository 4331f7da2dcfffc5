"""The native masked_adamw_ gives the bits of the reference: on every instruction set, with any number of threads, for
any shapes, values and counters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import pairwise
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.ops_cases import (
    ISAS,
    KINDS,
    LAYOUTS,
    MASKS,
    MODES,
    OPTIONS,
    PULLS,
    Case,
    assert_same_bits,
    bits,
    instruction_set,
    instruction_sets,
    make_case,
    needs_native,
    threads,
)

from cofitune_fast.ops import masked_adamw_
from cofitune_fast.ops._storage import STORAGES, new_state

pytestmark = needs_native


def assert_native_is_reference(case: Case, **options) -> None:
    assert_same_bits(case.step(backend="cpu", **options), case.step(backend="reference", **options))


@pairwise({"storage": STORAGES, "layout, mask_dtype": MASKS, "isa": ISAS,
           "anchored, kind": [("none", "l2"), ("one", "l2"), ("element", "l2"), ("element", "l1")]})
def test_the_reference_bits_on_every_instruction_set(storage, layout, mask_dtype, anchored, kind, isa):
    case = make_case(storage, layout, mask_dtype=mask_dtype, anchored=anchored)
    with instruction_set(isa):
        for mode in MODES:
            assert_native_is_reference(case, mask_mode=mode, seed=11, zero_grad=True, clip=torch.tensor([0.7, 0.0]),
                                       pull_kind=kind)


@settings(max_examples=150, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3).map(tuple) | st.tuples(st.integers(1, 3),
                                                                                    st.integers(200, 600)), max_size=4),
    mask=st.sampled_from(MASKS), pull=st.sampled_from(PULLS), storage=st.sampled_from(list(STORAGES)),
    mode=st.sampled_from(MODES), zero_grad=st.booleans(), isa=st.sampled_from(instruction_sets()),
    offset=st.sampled_from([0, 2**32 - 37, 2**32 + 5, 2**61]), seed=st.integers(-(2**63), 2**63 - 1),
)
def test_the_reference_bits_for_any_shapes(shapes, mask, pull, storage, mode, zero_grad, isa, offset, seed):
    (layout, mask_dtype), (anchored, kind) = mask, pull
    case = make_case(storage, layout, shapes, mask_dtype=mask_dtype, anchored=anchored)
    with instruction_set(isa):
        assert_native_is_reference(case, mask_mode=mode, seed=seed, offsets=[offset] * len(shapes),
                                   zero_grad=zero_grad, pull_kind=kind)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("layout", ["none", "row", "element"])
def test_the_reference_bits_over_several_chunks_and_runs(layout, storage):
    shapes = [(2, 140_001), (9000, 33), (0,), (600, 256), (1,)]
    for kind in KINDS:
        assert_native_is_reference(make_case(storage, layout, shapes, anchored="row"), offsets=[2**32 - 50_000] * 5,
                                   pull_kind=kind)
    assert_native_is_reference(make_case(storage, layout, shapes), seed=1)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("layout", ["none", "row", "element"])
def test_the_number_of_threads_changes_no_bit(layout, storage):
    case = make_case(storage, layout, [(300, 1000), (70_000,)])
    results = []
    for count in (1, 2, 5):
        with threads(count):
            results.append(case.step(backend="cpu"))
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1e-40, 1e-38, 1e-20, 1.0, -1.0, 3e38, -3e38, float("inf"), -float("inf"),
           float("nan")]


@pairwise({"storage": STORAGES, "layout": LAYOUTS, "kind": KINDS, "isa": ISAS})
def test_denormals_signed_zeros_infinities_and_nan_give_the_reference_bits(storage, layout, kind, isa):
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
    with instruction_set(isa):
        for step in range(1, 4):
            ours, case = (case.step(step=step, pull_kind=kind, backend=name) for name in ("cpu", "reference"))
            for actual, expected in zip(ours.values(0), case.values(0), strict=True):
                torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
                number = ~expected.isnan()
                assert torch.equal(actual.signbit()[number], expected.signbit()[number])


@pytest.mark.parametrize("storage", ["bf16_sr", "bf16", "int8"])
def test_counters_beyond_32_bits_draw_their_own_numbers(storage):
    """The second half of a tensor draws what a tensor of its own, whose offset is larger by the half, would draw."""
    case = make_case(storage, "none", [(1024,)])
    half = replace(case, **{name: [t[t.shape[0] // 2:].clone() for t in ts] for name, ts in case.written().items()},
                   masks=[None])
    for offset in (0, 2**32 - 700, 2**32 - 512, 2**33 - 1, 2**62):
        whole, second = case.step(offsets=[offset], backend="cpu"), half.step(offsets=[offset + 512], backend="cpu")
        for name, (expected,) in ((name, tensors) for name, tensors in second.written().items() if tensors):
            assert torch.equal(bits(getattr(whole, name)[0][-len(expected):]), bits(expected))
        elsewhere = case.step(offsets=[offset + 2**32], backend="cpu")
        assert (bits(whole.params[0]) != bits(elsewhere.params[0])).any()


@pytest.mark.parametrize("storage", ["bf16_split", "int8"])
def test_addresses_are_64_bits_wide(storage):
    """A matrix of 2^31 and some elements, of which all rows but the last two have the factor 0 and are thus never read:
    it takes addresses, but hardly any memory."""
    columns, shape = 1 << 16, ((1 << 15) + 2, 1 << 16)
    form = STORAGES[storage]
    small = make_case(storage, "none", [(2, columns)])
    try:
        dtypes = {"params": form.weight, "grads": form.weight, "exp_avgs": form.moment, "exp_avg_sqs": form.moment,
                  "remainders": torch.int16}
        lists = {name: [torch.empty(shape, dtype=dtype)] for name, dtype in dtypes.items() if getattr(small, name)}
        if form.scaled:
            lists["scales"] = [torch.empty(shape[0], columns // 256, 2)]
    except RuntimeError as error:
        pytest.skip(f"no address space for it ({error})")
    for name, tensors in lists.items():
        tensors[0][-2:] = getattr(small, name)[0]
    case = Case(storage, **lists, masks=[torch.zeros(shape[0], 1)])
    case.masks[0][-2:] = 1
    masked_adamw_(**case.arguments(), **OPTIONS, step=3, backend="cpu")
    expected = small.step(offsets=[2**31], backend="cpu")
    for name, tensors in lists.items():
        assert torch.equal(bits(tensors[0][-2:]), bits(getattr(expected, name)[0])), name
