"""linear_kl against autograd through the full logits."""

from __future__ import annotations

import pytest
import torch

from cofitune_fast.ops import linear_kl


def full_logits(hidden_p, hidden_q, weight, softcap):
    z_p, z_q = hidden_p @ weight.T, hidden_q @ weight.T
    if softcap is not None:
        z_p, z_q = softcap * torch.tanh(z_p / softcap), softcap * torch.tanh(z_q / softcap)
    return torch.nn.functional.kl_div(z_q.log_softmax(-1), z_p.log_softmax(-1), reduction="batchmean", log_target=True)


def inputs(dtype=torch.float64, tokens=7, width=6, vocabulary=29, weight_dtype=None):
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, width), (tokens, width), (vocabulary, width)]
    p, q, weight = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return p.requires_grad_(), q.requires_grad_(), weight.to(weight_dtype or dtype)


# float32: sums of some thirty products. bfloat16: the gradients are rounded to 8 bits once, the loss is float32.
TOLERANCE = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-5},
}


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 100, None])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_loss_and_both_gradients_are_those_of_the_full_logits(dtype, chunk_tokens, softcap):
    p, q, weight = inputs(dtype)
    loss = linear_kl(p, q, weight, softcap=softcap, chunk_tokens=chunk_tokens)
    grads = torch.autograd.grad(loss * 3, (p, q))
    p64, q64 = (h.detach().double().requires_grad_() for h in (p, q))
    expected = full_logits(p64, q64, weight.double(), softcap)
    expected_grads = torch.autograd.grad(expected * 3, (p64, q64))
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(loss.double(), expected, **TOLERANCE[torch.promote_types(dtype, torch.float32)])
    for ours, theirs in zip(grads, expected_grads, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, **TOLERANCE[dtype])


def test_gradcheck():
    p, q, weight = inputs()
    assert torch.autograd.gradcheck(lambda a, b: linear_kl(a, b, weight, softcap=3.0, chunk_tokens=4), (p, q))


def test_the_head_is_read_in_slices(monkeypatch):
    import importlib

    module = importlib.import_module("cofitune_fast.ops.linear_kl")
    p, q, weight = inputs(torch.float32, weight_dtype=torch.bfloat16)
    whole = linear_kl(p, q, weight)
    monkeypatch.setattr(module, "_HEAD_ROWS_AT_ONCE", 4)
    torch.testing.assert_close(linear_kl(p, q, weight), whole, **TOLERANCE[torch.float32])
    assert not weight.requires_grad


def test_one_side_alone_may_need_a_gradient():
    p, q, weight = inputs()
    both = torch.autograd.grad(linear_kl(p, q, weight), (p, q))
    torch.testing.assert_close(torch.autograd.grad(linear_kl(p, q.detach(), weight), p)[0], both[0])
    torch.testing.assert_close(torch.autograd.grad(linear_kl(p.detach(), q, weight), q)[0], both[1])
    with torch.no_grad():
        assert not linear_kl(p, q, weight).requires_grad


def test_equal_states_and_no_tokens_give_zero():
    p, _, weight = inputs()
    torch.testing.assert_close(linear_kl(p, p.detach().clone(), weight).detach(), torch.zeros((), dtype=torch.float64))
    assert linear_kl(p[:0], p[:0], weight).item() == 0


def test_the_sum_is_the_mean_times_the_tokens():
    p, q, weight = inputs()
    torch.testing.assert_close(linear_kl(p, q, weight, reduction="sum"), 7 * linear_kl(p, q, weight))


def test_the_library_op_keeps_its_schema():
    p, q, weight = inputs(torch.float32)
    torch.library.opcheck(torch.ops.cofitune_fast.linear_kl.default, (p, q, weight, 2.0, 3, True, "auto"))
