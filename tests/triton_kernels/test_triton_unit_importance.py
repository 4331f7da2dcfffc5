"""kernels/unit_importance.py against the eager reference in float64."""

from __future__ import annotations

import pytest
import torch
from cases import pairwise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cofitune_fast.ops import triton
from cofitune_fast.ops.unit_importance import reference

DTYPES = [torch.float32, torch.bfloat16]
# A unit's score is a sum of up to 40 thousand float32 products of order 1 that cancel, added up in a tree.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-4}


def inputs(batch, tokens, width, dtype, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y, grad_y = (torch.randn(batch, tokens, width, generator=generator).to(dtype).to(device) for _ in range(2))
    return y, grad_y, (torch.rand(batch, tokens, generator=generator) < 0.7).to(device)


def importance(y, grad_y, mask=None, unit_size=1, passes=1, start=0.0):
    scores = torch.full((y.shape[-1] // unit_size,), start, device=y.device)
    triton.kernel("unit_importance").unit_importance(scores, y, grad_y, mask, unit_size, passes)
    return scores


def expected(y, grad_y, mask=None, unit_size=1, passes=1, start=0.0):
    scores = torch.full((y.shape[-1] // unit_size,), start, dtype=torch.float64)
    reference(scores, y.cpu().double(), grad_y.cpu().double(), mask if mask is None else mask.cpu(), unit_size, passes)
    return scores


@pairwise({"unit_size, units": [(1, 1), (1, 17), (1, 256), (1, 300), (8, 5), (80, 3), (128, 2), (257, 3)],
           "passes": [1, 2], "dtype": DTYPES})
def test_scores_are_those_of_the_reference(device, unit_size, units, passes, dtype):
    y, grad_y, mask = inputs(4, 9, units * unit_size, dtype, device)
    ours = importance(y, grad_y, mask, unit_size, passes, start=3.0)
    torch.testing.assert_close(ours.cpu().double(), expected(y, grad_y, mask, unit_size, passes, 3.0), **TOLERANCE)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [1, 16, 127, 128, 129, 300])
def test_any_number_of_tokens(device, tokens, masked):
    y, grad_y, mask = inputs(2, tokens, 24, torch.bfloat16, device)
    mask = mask if masked else None
    for unit_size in (1, 12):
        ours = importance(y, grad_y, mask, unit_size, 2)
        torch.testing.assert_close(ours.cpu().double(), expected(y, grad_y, mask, unit_size, 2), **TOLERANCE)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    samples=st.integers(0, 3), passes=st.integers(1, 2), tokens=st.integers(0, 140), units=st.integers(0, 20),
    unit_size=st.sampled_from([1, 3, 16, 600]), dtype=st.sampled_from(DTYPES),
)
def test_any_shape(device, samples, passes, tokens, units, unit_size, dtype):
    y, grad_y, mask = inputs(samples * passes, tokens, units * unit_size, dtype, device)
    ours = importance(y, grad_y, mask, unit_size, passes, 1.0)
    torch.testing.assert_close(ours.cpu().double(), expected(y, grad_y, mask, unit_size, passes, 1.0), **TOLERANCE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_padded_tokens_may_hold_anything(device, value):
    y, grad_y, mask = inputs(2, 150, 40, torch.bfloat16, device)
    clean = importance(y, grad_y, mask, 8)
    y[~mask] = value
    grad_y[~mask] = value
    assert torch.equal(importance(y, grad_y, mask, 8), clean)


def test_a_sample_of_padding_alone_adds_nothing(device):
    y, grad_y, mask = inputs(2, 5, 16, torch.float32, device)
    mask[1] = False
    assert torch.equal(importance(y, grad_y, mask), importance(y[:1], grad_y[:1], mask[:1]))


def test_the_absolute_value_is_taken_per_sample_after_passes_and_splits(device):
    y = torch.ones(4, 200, 6, device=device)
    sign = torch.tensor([1.0, -1.0, 1.0, 1.0], device=device)[:, None, None]
    assert importance(y, sign * y, passes=1, unit_size=3).tolist() == [2400, 2400]
    assert importance(y, sign * y, passes=2, unit_size=3).tolist() == [1200, 1200]  # the first two rows cancel
    sign = torch.where(torch.arange(200, device=device) < 150, 1.0, -3.0)[None, :, None]
    assert importance(y, sign * y).tolist() == [0] * 6  # 150 - 3 * 50, in two splits


def test_permuting_units_permutes_their_scores(device):
    y, grad_y, mask = inputs(3, 140, 270, torch.bfloat16, device)
    order = torch.randperm(270, generator=torch.Generator().manual_seed(1)).to(device)
    permuted = importance(y[..., order].contiguous(), grad_y[..., order].contiguous(), mask)
    assert torch.equal(permuted, importance(y, grad_y, mask)[order])


def test_the_same_inputs_give_the_same_bits(device):
    y, grad_y, mask = inputs(2, 300, 520, torch.float32, device)
    assert torch.equal(importance(y, grad_y, mask, 65), importance(y.clone(), grad_y.clone(), mask.clone(), 65))
