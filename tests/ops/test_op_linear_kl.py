"""linear_kl against autograd through the full logits."""

from __future__ import annotations

import importlib

import pytest
import torch
from cases import pairwise
from ops.ops_cases import BACKENDS, ISAS, ON_CPU, bits, instruction_set, needs_native, threads

from cofitune_fast.ops import linear_kl

module = importlib.import_module("cofitune_fast.ops.linear_kl")


def full_logits(hidden_p, hidden_q, weight, softcap, bias=0, scale=1):
    z_p, z_q = (scale * (hidden @ weight.T + bias) for hidden in (hidden_p, hidden_q))
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


CHUNKS = [1, 3, 100, None]


@pairwise({"dtype": [torch.float32, torch.bfloat16], "backend": ON_CPU, "chunk_tokens": CHUNKS, "softcap": [None, 2.0]})
def test_loss_and_both_gradients_are_those_of_the_full_logits(dtype, backend, chunk_tokens, softcap):
    check(dtype, backend, chunk_tokens, softcap)


@pairwise({"dtype": [torch.float32, torch.bfloat16, torch.float64], "scale": [1.0, 1 / 3], "softcap": [None, 2.0],
           "has_bias": [True, False]})
def test_a_bias_and_a_scale_come_before_the_cap(dtype, scale, softcap, has_bias):
    bias = torch.randn(29, generator=torch.Generator().manual_seed(1)).to(dtype) if has_bias else None
    check(dtype, "auto", 3, softcap, bias, scale)


@pairwise({"chunk_tokens": CHUNKS, "softcap": [None, 2.0]})
def test_in_float64_they_are_so_to_ten_digits(chunk_tokens, softcap):
    check(torch.float64, "reference", chunk_tokens, softcap)


def check(dtype, backend, chunk_tokens, softcap, bias=None, scale=1.0):
    p, q, weight = inputs(dtype)
    loss = linear_kl(p, q, weight, bias=bias, scale=scale, softcap=softcap, chunk_tokens=chunk_tokens, backend=backend)
    grads = torch.autograd.grad(loss * 3, (p, q))
    p64, q64 = (h.detach().double().requires_grad_() for h in (p, q))
    expected = full_logits(p64, q64, weight.double(), softcap, 0 if bias is None else bias.double(), scale)
    expected_grads = torch.autograd.grad(expected * 3, (p64, q64))
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(loss.double(), expected, **TOLERANCE[torch.promote_types(dtype, torch.float32)])
    for ours, theirs in zip(grads, expected_grads, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, **TOLERANCE[dtype])


def test_gradcheck():
    p, q, weight = inputs()
    assert torch.autograd.gradcheck(lambda a, b: linear_kl(a, b, weight, softcap=3.0, chunk_tokens=4), (p, q))


@needs_native
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_gradient_is_the_slope_of_the_loss(softcap):
    """As gradcheck, for a backend of float32: along a direction, by the differences of the reference in float64."""
    p, q, weight = inputs(torch.float32, tokens=5, width=16, vocabulary=333)
    generator = torch.Generator().manual_seed(1)
    grads = torch.autograd.grad(linear_kl(p, q, weight, softcap=softcap, backend="cpu"), (p, q))
    for which, grad in enumerate(grads):
        direction = torch.randn(grad.shape, generator=generator, dtype=torch.float64)
        sides = []
        for step in (1e-5, -1e-5):
            moved = [h.detach().double() for h in (p, q)]
            moved[which] += step * direction
            sides.append(linear_kl(*moved, weight.double(), softcap=softcap))
        slope = (sides[0] - sides[1]) / 2e-5
        torch.testing.assert_close((grad.double() * direction).sum(), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_head_of_another_dtype_is_copied_in_slices(monkeypatch, backend):
    p, q, weight = inputs(torch.float32, weight_dtype=torch.bfloat16)
    whole = torch.autograd.grad(linear_kl(p, q, weight, backend=backend), (p, q))
    monkeypatch.setattr(module, "_HEAD_ROWS_AT_ONCE", 4)
    assert max(part.shape[0] for _, part in module._slices(weight, torch.float32)) == 4
    slices = torch.autograd.grad(linear_kl(p, q, weight, backend=backend), (p, q))
    for ours, theirs in zip(slices, whole, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE[torch.float32])


def test_bfloat16_products_into_float32_as_on_cuda(monkeypatch):
    """The path of CUDA tensors, with a stand-in for the one overload of torch.mm that CPUs lack."""
    mm = torch.mm

    def stand_in(a, b, *, out_dtype=None, out=None):
        if out_dtype is None:
            return mm(a, b, out=out)
        assert a.dtype == b.dtype == torch.bfloat16
        return mm(a.to(out_dtype), b.to(out_dtype), out=out)

    p, q, weight = inputs(torch.bfloat16)
    expected = linear_kl(p, q, weight, softcap=5.0, reduction="sum")
    expected_grads = torch.autograd.grad(expected, (p, q))
    monkeypatch.setattr(module, "_mixes", lambda weight, dtype: weight.dtype == dtype == torch.bfloat16)
    monkeypatch.setattr(torch, "mm", stand_in)
    loss = linear_kl(p, q, weight, softcap=5.0, reduction="sum", chunk_tokens=3)
    torch.testing.assert_close(loss, expected, **TOLERANCE[torch.float32])
    gradients = torch.randn(4, 29, generator=torch.Generator().manual_seed(1))
    exact = gradients.double() @ weight.double()
    bound = 2**-16 * (gradients.double().abs() @ weight.double().abs())
    assert ((module._to_hidden(gradients, weight, torch.bfloat16).double() - exact).abs() <= bound).all()
    for ours, theirs in zip(torch.autograd.grad(loss, (p, q)), expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_more_logits_than_a_chunk_exist(monkeypatch, backend):
    shapes = []
    run = module.op.run
    monkeypatch.setattr(module.op, "run", lambda *a: (shapes.append((a[2].shape, a[3].shape)), run(*a))[1])
    p, q, weight = inputs(torch.float32)
    linear_kl(p, q, weight, chunk_tokens=3, backend=backend)
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 4 * 29 + 1)
    linear_kl(p, q, weight, backend=backend)
    assert shapes == [((n, 29), (n, 29)) for n in (3, 3, 1, 4, 3)]


def test_one_side_alone_may_need_a_gradient():
    p, q, weight = inputs()
    both = torch.autograd.grad(linear_kl(p, q, weight), (p, q))
    torch.testing.assert_close(torch.autograd.grad(linear_kl(p, q.detach(), weight), p)[0], both[0])
    torch.testing.assert_close(torch.autograd.grad(linear_kl(p.detach(), q, weight), q)[0], both[1])
    with torch.no_grad():
        assert not linear_kl(p, q, weight).requires_grad


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_equal_states_and_no_tokens_give_zero(softcap, backend):
    p, _, weight = inputs(torch.float32)
    loss = linear_kl(p, p.detach().clone(), weight, softcap=softcap, backend=backend)
    assert loss.item() == 0 and not torch.autograd.grad(loss, p)[0].abs().gt(1e-6).any()
    for reduction in ("mean", "sum"):
        assert linear_kl(p[:0], p[:0], weight, reduction=reduction, backend=backend).item() == 0


def test_the_sum_is_the_mean_times_the_tokens():
    p, q, weight = inputs()
    torch.testing.assert_close(linear_kl(p, q, weight, reduction="sum"), 7 * linear_kl(p, q, weight))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_that_is_not_a_number_spoils_no_other(backend):
    p, q, weight = inputs(torch.float32)
    clean = torch.autograd.grad(linear_kl(p, q, weight, reduction="sum", backend=backend), (p, q))
    with torch.no_grad():
        p[2, 3] = float("nan")
    loss = linear_kl(p, q, weight, reduction="sum", backend=backend)
    assert loss.isnan()
    for ours, theirs in zip(torch.autograd.grad(loss, (p, q)), clean, strict=True):
        assert ours.isnan().any(1).tolist() == [row == 2 for row in range(7)]
        others = torch.arange(7) != 2
        torch.testing.assert_close(ours[others], theirs[others], **TOLERANCE[torch.float32])


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_neither_threads_nor_the_instruction_set_change_a_bit(isa):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 5, 40_003, generator=generator) * 5

    def results():
        z_p, z_q = z.clone()
        return module._native(z_p, z_q, 30.0, True), z_p, z_q

    expected = results()
    with instruction_set(isa):
        for count in (1, 2, 5):
            with threads(count):
                assert all(torch.equal(bits(a), bits(b)) for a, b in zip(results(), expected, strict=True))


@pytest.mark.parametrize("backend", ON_CPU)
def test_the_library_op_keeps_its_schema(backend):
    p, q, weight = inputs(torch.float32)
    torch.library.opcheck(torch.ops.cofitune_fast.linear_kl.default, (p, q, weight, None, 1.0, 2.0, 3, True, backend))
