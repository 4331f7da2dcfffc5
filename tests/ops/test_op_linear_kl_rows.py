"""The rows of linear_kl: divergence and gradients by the logits, element by element against float64."""

from __future__ import annotations

import importlib

import pytest
import torch
from cases import pairwise
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.ops_cases import BACKENDS, needs_native

op = importlib.import_module("cofitune_fast.ops.linear_kl").op
CPU = torch.device("cpu")

UNIT = 2.0**-24  # half a unit in the last place: what one rounding of a float32 may change, relative to it
SMALLEST = 2.0**-126  # of normal numbers; below it a probability may be 0


def kl_rows(backend, z_p, z_q, softcap=None):
    z_p, z_q = z_p.clone(), z_q.clone()
    return op.run(backend, CPU, z_p, z_q, softcap, True), z_p, z_q


def check(backend, z_p, z_q, softcap=None):
    """Against float64, with bounds that follow the roundings: a log probability is off by a few roundings of itself
    (and of the soft cap), its probability by as much of itself."""
    kl, grad_p, grad_q = kl_rows(backend, z_p, z_q, softcap)
    raw_p, raw_q = (z.double().requires_grad_() for z in (z_p, z_q))
    capped = [z if softcap is None else softcap * torch.tanh(z / softcap) for z in (raw_p, raw_q)]
    log_p, log_q = (z.log_softmax(-1) for z in capped)
    ratio = log_p - log_q
    exact = (log_p.exp() * ratio).sum(-1)
    exact_p, exact_q = torch.autograd.grad(exact.sum(), (raw_p, raw_q))
    with torch.no_grad():
        p, q = log_p.exp(), log_q.exp()
        off_p, off_q = (4 * UNIT * (1 + (softcap or 0) - log) for log in (log_p, log_q))
        off_kl = (p * (off_p * (1 + ratio.abs()) + off_q) + q * off_q).sum(-1)
        assert_within(kl, exact, off_kl)
        far = (ratio - exact[:, None]).abs()
        assert_within(grad_p, exact_p, p * (far * off_p + off_p + off_q + off_kl[:, None]) + SMALLEST * far)
        assert_within(grad_q, exact_q, p * off_p + q * off_q)


def assert_within(ours, exact, bound):
    wrong = ~((ours.double() - exact).abs() <= bound + SMALLEST)
    assert not wrong.any(), f"{wrong.nonzero()[0].tolist()}: {ours[wrong]} for {exact[wrong]}, within {bound[wrong]}"


def logits(rows, vocabulary, scale, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, vocabulary, generator=generator) * scale


@pairwise({"vocabulary": [1, 2, 63, 64, 65, 1023, 1025, 32_003], "scale": [1e-3, 1.0, 20.0],
           "softcap": [None, 2.0, 30.0], "backend": BACKENDS})
def test_any_vocabulary(vocabulary, scale, softcap, backend):
    check(backend, *logits(3, vocabulary, scale), softcap)


@pairwise({"scale": [1e2, 1e3, 1e4], "softcap": [None, 30.0], "backend": BACKENDS})
def test_extreme_logits(scale, softcap, backend):
    z_p, z_q = logits(4, 5001, 1.0)
    z_p[0, 17], z_q[0, 4000] = scale, scale  # two different certainties
    z_p[1, 17], z_q[1, 17] = scale, -scale  # the opposite of one
    z_p[2:], z_q[2:] = z_p[2:] * scale, z_q[2:] * scale
    z_p[3] -= scale
    check(backend, z_p, z_q, softcap)


@pairwise({"shift": [0.0, 1e4], "softcap": [None, 30.0], "backend": BACKENDS})
def test_equal_distributions(shift, softcap, backend):
    z = logits(2, 777, 5.0)[0] + shift
    kl, grad_p, grad_q = kl_rows(backend, z, z, softcap)
    assert not kl.any() and not grad_q.any() and not grad_p.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_probability_down_to_the_smallest(backend):
    """One logit sinks from 0 to 88 below the others, so that exp runs through its whole range."""
    z_p = torch.zeros(2000, 3)
    z_p[:, 1] = -torch.linspace(0, 88, 2000)
    check(backend, z_p, z_p.roll(1, 1))


@needs_native
def test_a_native_probability_is_off_by_a_few_units():
    x = -torch.linspace(0, 88, 20_000)
    z_q = torch.stack([torch.zeros_like(x), x], 1)
    z_p = torch.tensor([0.0, -1e4]).repeat(len(x), 1)  # p is 0 or 1, so that the gradient q - p is q
    exact = z_q.double().softmax(-1)[:, 1]
    assert_within(kl_rows("cpu", z_p, z_q)[2][:, 1], exact, 5 * UNIT * exact)


@pairwise({"place": [0, 64, 300], "side": [0, 1], "bad": [float("nan"), float("inf")], "backend": BACKENDS})
def test_a_row_with_a_bad_logit_is_not_a_number_and_the_others_stay(place, side, bad, backend):
    z = logits(3, 301, 3.0)
    expected = kl_rows(backend, *z)
    z[side, 1, place] = bad
    for ours, theirs in zip(kl_rows(backend, *z), expected, strict=True):
        assert torch.equal(ours[[0, 2]], theirs[[0, 2]])
        assert ours[1].isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_gradients_the_divergence_is_the_same(backend):
    z_p, z_q = logits(3, 301, 3.0)
    alone = op.run(backend, CPU, z_p.clone(), z_q.clone(), 5.0, False)
    assert torch.equal(alone, kl_rows(backend, z_p, z_q, 5.0)[0])


@needs_native
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 4), vocabulary=st.integers(1, 3000), scale=st.floats(0, 100),
       softcap=st.none() | st.floats(0.5, 50), seed=st.integers(0, 99))
def test_any_shape_and_scale(rows, vocabulary, scale, softcap, seed):
    check("cpu", *logits(rows, vocabulary, scale, seed), softcap)
