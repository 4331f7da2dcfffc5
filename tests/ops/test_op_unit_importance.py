"""unit_importance_ against autograd through an explicit gate of ones, and against float64."""

from __future__ import annotations

import pytest
import torch
from cases import pairwise
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.ops_cases import BACKENDS, ISAS, ON_CPU, TOLERANCE, instruction_set, needs_native, threads

from cofitune_fast.ops import unit_importance_

NATIVE = 4e-7  # of the sum of the magnitudes of all products: 3e-7 of the sum, and the score's own rounding


def through_a_gate(y, weight, attention_mask, unit_size, passes):
    """Per sample: the gradient of a loss by a vector of ones that multiplies the units; absolute values added up."""
    batch, _, width = y.shape
    total = torch.zeros(width // unit_size, dtype=torch.float64)
    for start in range(0, batch, passes):
        rows = slice(start, start + passes)
        gate = torch.ones(width // unit_size, dtype=torch.float64, requires_grad=True)
        gated = y[rows].double() * gate.repeat_interleave(unit_size)
        loss = (torch.tanh(gated) * weight[rows].double() * attention_mask[rows][..., None]).sum()
        total += torch.autograd.grad(loss, gate)[0].abs()
    return total


def inputs(batch, tokens, width, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(batch, tokens, width, generator=generator).to(dtype)
    weight = torch.randn(batch, tokens, width, generator=generator)
    mask = torch.rand(batch, tokens, generator=generator) < 0.7
    grad_y = (weight.double() * (1 - torch.tanh(y.double()).square())).to(dtype)
    return y, weight, grad_y, mask


def in_float64(y, grad_y, mask, unit_size, passes):
    """Scores, and the sums of the magnitudes of their products."""
    product = (y.double() * grad_y.double()).where(mask[..., None], 0.0)
    by_sample = product.view(y.shape[0] // passes, -1, y.shape[2] // unit_size, unit_size)
    return by_sample.sum((1, 3)).abs().sum(0), by_sample.abs().sum((0, 1, 3))


@pairwise({"width": [8, 1048], "passes": [1, 2], "unit_size": [1, 8], "backend": BACKENDS})
def test_it_is_the_gradient_of_a_gate_of_ones(width, passes, unit_size, backend):
    y, weight, grad_y, mask = inputs(4, 7, width, torch.float32)
    scores = torch.full((width // unit_size,), 3.0)
    returned = unit_importance_(scores, y, grad_y, attention_mask=mask, unit_size=unit_size, passes=passes,
                                backend=backend)
    expected = 3 + through_a_gate(y, weight, mask, unit_size, passes)
    assert returned is scores
    torch.testing.assert_close(scores.double(), expected, **TOLERANCE["sum"])


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("passes", [1, 2])
def test_per_batch_the_absolute_value_is_that_of_the_whole_sum(passes, backend):
    y, weight, grad_y, mask = inputs(4, 7, 12, torch.float32)
    result = unit_importance_(torch.zeros(3), y, grad_y, attention_mask=mask, unit_size=4, passes=passes, per="batch",
                              backend=backend)
    torch.testing.assert_close(result.double(), through_a_gate(y, weight, mask, 4, 4), **TOLERANCE["sum"])


@needs_native
@pairwise({"tokens": [7, 8, 255, 256, 257, 530], "unit_size": [1, 64, 1100], "dtype": [torch.float32, torch.bfloat16]})
def test_the_error_of_sums_that_cancel_is_bounded(tokens, unit_size, dtype):
    y, _, grad_y, mask = inputs(2, tokens, 2200 - 2200 % unit_size, dtype)
    odd = torch.arange(tokens)[:, None] % 2 == 1  # takes back what the token before brought
    y, grad_y = torch.where(odd, y.roll(1, 1), y), torch.where(odd, -grad_y.roll(1, 1), grad_y)
    mask = torch.where(odd[:, 0], mask.roll(1, 1), mask)
    scores = torch.zeros(y.shape[2] // unit_size)
    unit_importance_(scores, y, grad_y, attention_mask=mask, unit_size=unit_size, backend="cpu")
    exact, magnitude = in_float64(y, grad_y, mask, unit_size, 1)
    assert ((scores.double() - exact).abs() <= NATIVE * magnitude).all()
    assert exact.sum() < 0.3 * magnitude.sum()


@needs_native
def test_small_products_are_not_lost_beside_a_large_one():
    y = torch.full((1, 512, 3), 0.125)
    y[:, 0] = 2.0**24
    scores = unit_importance_(torch.zeros(3), y, torch.ones_like(y), backend="cpu")
    torch.testing.assert_close(scores, torch.full((3,), 2.0**24 + 64), rtol=0, atol=2)  # 2: a unit in the last place


@needs_native
@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(0, 3), passes=st.integers(1, 2), tokens=st.integers(0, 20), units=st.integers(0, 40),
    unit_size=st.sampled_from([1, 3, 16, 600]), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_native_is_right_for_any_shape(samples, passes, tokens, units, unit_size, dtype):
    y, _, grad_y, mask = inputs(samples * passes, tokens, units * unit_size, dtype)
    scores = unit_importance_(torch.zeros(units), y, grad_y, attention_mask=mask, unit_size=unit_size, passes=passes,
                              backend="cpu")
    if y.numel():
        exact, magnitude = in_float64(y, grad_y, mask, unit_size, passes)
        assert ((scores.double() - exact).abs() <= NATIVE * magnitude).all()
    else:
        assert not scores.any()


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("live", [3, 8, 20, 257])
def test_padding_is_ignored_even_where_it_is_not_a_number(live, backend):
    y, _, grad_y, _ = inputs(2, 300, 6, torch.bfloat16)
    expected = unit_importance_(torch.zeros(6), y[:, :live], grad_y[:, :live], backend=backend)
    y[:, live:], grad_y[:, live:] = float("nan"), float("inf")
    mask = (torch.arange(300) < live).long().expand(2, 300)
    result = unit_importance_(torch.zeros(6), y, grad_y, attention_mask=mask, backend=backend)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ON_CPU)
def test_what_is_not_a_number_reaches_the_score_of_its_unit_only(backend):
    y, _, grad_y, _ = inputs(2, 9, 12, torch.float32)
    y[1, 4, 7] = float("nan")
    scores = unit_importance_(torch.zeros(4), y, grad_y, unit_size=3, backend=backend)
    assert scores.isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_of_a_larger_tensor_are_welcome(backend):
    y, _, grad_y, _ = inputs(2, 5, 12, torch.float32)
    result = unit_importance_(torch.zeros(6), y[..., ::2], grad_y[..., ::2], backend=backend)
    expected = unit_importance_(torch.zeros(6), y[..., ::2].clone(), grad_y[..., ::2].clone(), backend=backend)
    assert torch.equal(result, expected)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("isa", ISAS)
def test_neither_threads_nor_the_instruction_set_change_a_bit(isa, dtype):
    y, _, grad_y, mask = inputs(3, 300, 1301, dtype)

    def scores():
        return unit_importance_(torch.zeros(1301), y, grad_y, attention_mask=mask, backend="cpu")

    expected = scores()
    with instruction_set(isa):
        for count in (1, 2, 5):
            with threads(count):
                assert torch.equal(scores(), expected)


@pytest.mark.parametrize("backend", ON_CPU)
def test_the_library_op_keeps_its_schema(backend):
    y, _, grad_y, mask = inputs(2, 3, 8, torch.bfloat16)
    torch.library.opcheck(torch.ops.cofitune_fast.unit_importance_.default,
                          (torch.zeros(4), y, grad_y, mask, 2, 1, backend))
