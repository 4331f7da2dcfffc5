"""kernels/linear_kl.py against float64 autograd through log_softmax."""

from __future__ import annotations

import pytest
import torch
from cases import pairwise

from cofitune_fast.ops import triton

# rtol: of the value; atol: of the largest number that a row works with, be it a divergence, a soft cap or 1.
KL = {"rtol": 1e-6, "atol": 5e-7}
GRADIENT = {"rtol": 1e-5, "atol": 5e-7}


def logits(rows, vocabulary, scale, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z_p = torch.randn(rows, vocabulary, generator=generator) * scale
    return z_p.to(device), (z_p + torch.randn(rows, vocabulary, generator=generator) * scale / 3).to(device)


def kl_rows(z_p, z_q, softcap=None, need_gradients=True):
    """KL and what the kernel leaves where the logits were."""
    z_p, z_q = z_p.clone(), z_q.clone()
    kl = triton.kernel("linear_kl").kl_rows(z_p, z_q, softcap, need_gradients)
    return kl, z_p, z_q


def through_autograd(z_p, z_q, softcap=None):
    z_p, z_q = (z.cpu().double().requires_grad_() for z in (z_p, z_q))
    log_p, log_q = (
        (z if softcap is None else softcap * torch.tanh(z / softcap)).log_softmax(-1) for z in (z_p, z_q)
    )
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    return kl.detach(), *torch.autograd.grad(kl.sum(), (z_p, z_q))


def check(z_p, z_q, softcap=None):
    ours, theirs = kl_rows(z_p, z_q, softcap), through_autograd(z_p, z_q, softcap)
    for result, expectation, tolerance in zip(ours, theirs, (KL, GRADIENT, GRADIENT), strict=True):
        assert result.dtype == torch.float32
        for row, divergence in enumerate(theirs[0].tolist()):
            magnitude = max(1.0, softcap or 0, divergence)
            torch.testing.assert_close(result[row].cpu().double(), expectation[row], rtol=tolerance["rtol"],
                                       atol=tolerance["atol"] * magnitude)


@pairwise({"vocabulary": [1, 7, 4096, 4097, 9001], "scale": [0.01, 1.0, 8.0], "softcap": [None, 2.0, 30.0]})
def test_divergence_and_gradients(device, vocabulary, scale, softcap):
    check(*logits(3, vocabulary, scale, device), softcap)


@pytest.mark.parametrize("softcap", [None, 2.0, 30.0])
@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_extreme_logits(device, scale, softcap):
    check(*logits(2, 5000, scale, device), softcap)


@pytest.mark.parametrize("position_p", [0, 4095, 4096, 9000])
@pytest.mark.parametrize("position_q", [0, 4096, 9000])
def test_the_maxima_may_stand_in_any_block(device, position_p, position_q):
    z_p, z_q = logits(1, 9001, 1.0, device)
    z_p[0, position_p] = 60
    z_q[0, position_q] = 40
    check(z_p, z_q)


def test_every_later_block_may_raise_the_maximum(device):
    ramp = torch.linspace(-1e4, 1e4, 13000, device=device)
    check(torch.stack([ramp, ramp, ramp.flip(0)]), torch.stack([ramp / 2, ramp.flip(0), ramp]))


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_equal_rows_give_exactly_zero(device, softcap):
    z, _ = logits(2, 9001, 50.0, device)
    for result in kl_rows(z, z, softcap):
        assert torch.equal(result, torch.zeros_like(result))


def test_without_gradients_the_logits_stay_and_the_divergence_is_the_same(device):
    z_p, z_q = logits(2, 5000, 3.0, device)
    kl, p_after, q_after = kl_rows(z_p, z_q, 30.0, need_gradients=False)
    assert torch.equal(p_after, z_p) and torch.equal(q_after, z_q)
    assert torch.equal(kl, kl_rows(z_p, z_q, 30.0)[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy, which the interpreter computes with
def test_a_row_that_is_not_finite_stays_alone(device, value):
    z_p, z_q = logits(3, 50, 1.0, device)
    z_p[1, 7] = value
    for result in kl_rows(z_p, z_q):
        assert result.reshape(3, -1).isfinite().all(1).tolist() == [True, False, True]


def test_no_rows(device):
    assert kl_rows(*logits(0, 5, 1.0, device))[0].shape == (0,)


def test_rows_do_not_depend_on_their_company(device):
    z_p, z_q = logits(5, 4100, 3.0, device)
    for whole, part in zip(kl_rows(z_p, z_q), kl_rows(z_p[2:4], z_q[2:4]), strict=True):
        assert torch.equal(whole[2:4], part)
