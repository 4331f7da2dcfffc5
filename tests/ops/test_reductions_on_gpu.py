"""The ops but the optimizer step on CUDA tensors: every backend against the reference on the CPU."""

from __future__ import annotations

import pytest
import torch
from ops.ops_cases import TOLERANCE

from cofitune_fast.ops import grad_norm, linear_kl, log_sum_exp, scaled_softmax_, unit_importance_
from cofitune_fast.ops._registry import OPERATIONS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is there")]
DTYPES = [torch.float32, torch.bfloat16]


def backends(op):
    available = ["reference"]
    if torch.cuda.is_available():
        available += [name for name, entry in OPERATIONS[op].backends.items()
                      if entry.refusal(torch.device("cuda")) is None]
    return pytest.mark.parametrize("backend", available)


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@backends("grad_norm")
def test_grad_norm(backend, dtype):
    shapes = [(64, 33), (3, 40_001), (1000, 576), (17,), (0, 4)]
    weights, grads = ([normal(*shape, dtype=dtype, seed=seed) for shape in shapes] for seed in (0, 1))
    on_gpu = [[t.cuda() for t in tensors] for tensors in (weights, grads)]
    ours = grad_norm(on_gpu[1], 1.0, weights=on_gpu[0], backend=backend)
    exact = grad_norm(grads, 1.0, weights=weights, backend="reference")
    torch.testing.assert_close(ours.norm.cpu(), exact.norm, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.clip.cpu(), exact.clip, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad_norm(on_gpu[1], backend=backend).norm.cpu(), exact.norm, rtol=1e-6, atol=0)
    for dots, expected, w, g in zip(ours.row_dots, exact.row_dots, weights, grads, strict=True):
        assert ((dots.cpu() - expected).abs() <= 1e-6 * (w.double() * g.double()).abs().sum(-1)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit_size", [1, 64])
@pytest.mark.parametrize("per", ["sample", "batch"])
@backends("unit_importance_")
def test_unit_importance(backend, per, unit_size, dtype):
    y, grad_y = normal(4, 300, 576, dtype=dtype), normal(4, 300, 576, dtype=dtype, seed=1)
    mask = torch.rand(4, 300, generator=torch.Generator().manual_seed(2)) < 0.7
    y[~mask] = float("nan")
    options = {"unit_size": unit_size, "passes": 2, "per": per}
    expected = unit_importance_(torch.zeros(576 // unit_size), y, grad_y, attention_mask=mask, backend="reference",
                                **options)
    ours = unit_importance_(torch.zeros(576 // unit_size).cuda(), y.cuda(), grad_y.cuda(), attention_mask=mask.cuda(),
                            backend=backend, **options)
    torch.testing.assert_close(ours.cpu(), expected, rtol=1e-5, atol=1e-3)  # of sums of magnitude 20 that cancel


@pytest.mark.parametrize("head", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softcap, scale", [(None, 1.0), (20.0, 1 / 3)])
@pytest.mark.parametrize("chunk_tokens", [50, None])
@backends("linear_kl")
def test_linear_kl(backend, chunk_tokens, softcap, scale, dtype, head):
    hidden = [normal(130, 64, dtype=dtype, seed=seed) for seed in (0, 1)]
    weight = normal(5003, 64, dtype=head, seed=2) * 0.2
    inputs = [[h.to(device).requires_grad_() for h in hidden] for device in ("cpu", "cuda")]
    bias = None if scale == 1 else normal(5003, dtype=head, seed=3)
    options = {"scale": scale, "softcap": softcap, "reduction": "sum"}
    expected = linear_kl(*inputs[0], weight, bias=bias, backend="reference", **options)
    ours = linear_kl(*inputs[1], weight.cuda(), bias=bias if bias is None else bias.cuda(), chunk_tokens=chunk_tokens,
                     backend=backend, **options)
    torch.testing.assert_close(ours.cpu(), expected, rtol=1e-5, atol=1e-6)
    tolerance = {"rtol": 2**-7, "atol": 1e-4} if dtype == torch.bfloat16 else TOLERANCE["sum"]
    for grad, exact in zip(torch.autograd.grad(ours, inputs[1]), torch.autograd.grad(expected, inputs[0]), strict=True):
        torch.testing.assert_close(grad.cpu(), exact, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [1, 4097, 49_152])
@backends("log_sum_exp")
def test_softmax(backend, vocabulary, dtype):
    z, scales = normal(37, vocabulary, dtype=dtype) * 3, torch.linspace(-1, 2, 37)
    expected = log_sum_exp(z, backend="reference")
    sums = log_sum_exp(z.cuda(), backend=backend)
    torch.testing.assert_close(sums.cpu(), expected, rtol=1e-6, atol=1e-6)
    on_gpu = scaled_softmax_(z.cuda(), sums, scales.cuda(), backend=backend)
    tolerance = {"rtol": 2**-7 if dtype == torch.bfloat16 else 1e-5, "atol": 1e-30}
    torch.testing.assert_close(on_gpu.cpu(), scaled_softmax_(z, expected, scales, backend="reference"), **tolerance)
