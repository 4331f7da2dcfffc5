"""unit_importance_ against autograd through an explicit gate of ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.ops_cases import BACKENDS, TOLERANCE, needs_native

from cofitune_fast.ops import unit_importance_


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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("unit_size", [1, 8])
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("width", [8, 1048])
def test_it_is_the_gradient_of_a_gate_of_ones(width, passes, unit_size, backend):
    y, weight, grad_y, mask = inputs(4, 7, width, torch.float32)
    scores = torch.full((width // unit_size,), 3.0)
    returned = unit_importance_(scores, y, grad_y, attention_mask=mask, unit_size=unit_size, passes=passes,
                                backend=backend)
    expected = 3 + through_a_gate(y, weight, mask, unit_size, passes)
    assert returned is scores
    torch.testing.assert_close(scores.double(), expected, **TOLERANCE["sum"])


@needs_native
@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(0, 3), passes=st.integers(1, 2), tokens=st.integers(0, 5), units=st.integers(0, 40),
    unit_size=st.sampled_from([1, 3, 16, 600]), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_native_agrees_with_the_reference_for_any_shape(samples, passes, tokens, units, unit_size, dtype):
    y, _, grad_y, mask = inputs(samples * passes, tokens, units * unit_size, dtype)
    ours, reference = (
        unit_importance_(torch.zeros(units), y, grad_y, attention_mask=mask, unit_size=unit_size, passes=passes,
                         backend=backend)
        for backend in ("cpu", "reference")
    )
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_ignored_even_where_it_is_not_a_number(backend):
    y, _, grad_y, _ = inputs(2, 5, 6, torch.bfloat16)
    expected = unit_importance_(torch.zeros(6), y[:, :3], grad_y[:, :3], backend=backend)
    y[:, 3:] = float("nan")
    mask = torch.tensor([[1, 1, 1, 0, 0]]).expand(2, 5)
    result = unit_importance_(torch.zeros(6), y, grad_y, attention_mask=mask, backend=backend)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_of_a_larger_tensor_are_welcome(backend):
    y, _, grad_y, _ = inputs(2, 5, 12, torch.float32)
    result = unit_importance_(torch.zeros(6), y[..., ::2], grad_y[..., ::2], backend=backend)
    expected = unit_importance_(torch.zeros(6), y[..., ::2].clone(), grad_y[..., ::2].clone(), backend=backend)
    assert torch.equal(result, expected)


@needs_native
def test_the_number_of_threads_changes_no_bit():
    y, _, grad_y, mask = inputs(3, 50, 2000, torch.bfloat16)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            results.append(unit_importance_(torch.zeros(2000), y, grad_y, attention_mask=mask, backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_library_op_keeps_its_schema(backend):
    y, _, grad_y, mask = inputs(2, 3, 8, torch.bfloat16)
    torch.library.opcheck(torch.ops.cofitune_fast.unit_importance_.default,
                          (torch.zeros(4), y, grad_y, mask, 2, 1, backend))
