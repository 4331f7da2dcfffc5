"""grad_norm in CUDA against the eager reference: emulated, and on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch
from cases import pairwise
from ops.ops_cases import bits

from cofitune_fast.ops import grad_norm

pytestmark = pytest.mark.slow  # the emulated extension is compiled first

DTYPES = [torch.float32, torch.bfloat16]
# Chunks of 32768 without row dots, of eight rows with; rows of odd length, no rows and no columns.
SHAPES = [(1,), (17,), (), (64, 33), (2, 3, 5), (0, 4), (3, 0), (70_001,), (20, 4096), (9, 11_008)]
RTOL = 1e-6  # products of eight are summed in float32, all else in double


def normal(shapes, dtype, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=generator) * scale).to(dtype) for shape in shapes]


def on(device, tensors):
    return [tensor.to(device) for tensor in tensors]


@pytest.mark.parametrize("max_norm", [None, 1.0, 1e6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_and_clip(dtype, max_norm, device):
    grads = normal(SHAPES, dtype)
    ours = grad_norm(on(device, grads), max_norm, backend="cuda")
    expected = grad_norm(grads, max_norm, backend="reference")
    torch.testing.assert_close(ours.norm.cpu(), expected.norm, rtol=RTOL, atol=0)
    torch.testing.assert_close(ours.clip.cpu(), expected.clip, rtol=RTOL, atol=0)
    assert ours.row_dots is None and ours.norm.shape == () and ours.norm.dtype == torch.float32


def test_clip_of_a_tiny_norm(device):
    """Here the small number that is added to the norm counts: half a millionth against one."""
    grads = [torch.tensor([3e-7, -4e-7])]
    ours = grad_norm(on(device, grads), 5e-7, backend="cuda").clip.cpu()
    torch.testing.assert_close(ours, grad_norm(grads, 5e-7, backend="reference").clip, rtol=RTOL, atol=0)
    assert ours[0].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_dots(dtype, device):
    weights, grads = normal(SHAPES, dtype, seed=1), normal(SHAPES, dtype)
    ours = grad_norm(on(device, grads), 1.0, weights=on(device, weights), backend="cuda")
    expected = grad_norm(grads, 1.0, weights=weights, backend="reference")
    torch.testing.assert_close(ours.norm.cpu(), expected.norm, rtol=RTOL, atol=0)
    for dots, exact, w, g in zip(ours.row_dots, expected.row_dots, weights, grads, strict=True):
        assert dots.shape == exact.shape
        bound = RTOL * (w.double() * g.double()).abs().sum(-1)
        assert ((dots.cpu() - exact).abs() <= bound).all()


@pairwise({"where": [0, 4095, 4096, 70_000], "bad": [float("nan"), float("inf"), -float("inf")],
           "with_dots": [False, True]})
def test_one_bad_element_anywhere_sets_the_flag(where, bad, with_dots, device):
    grads = normal([(70_001,), (3, 5)], torch.float32)
    grads[0][where] = bad
    there = on(device, grads)
    result = grad_norm(there, 1.0, weights=there if with_dots else None, backend="cuda")
    assert result.clip.tolist() == [0.0, 1.0] and not result.norm.isfinite()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("magnitude", [1e-38, 1e-30, 1e-20, 1e-12, 1.0, 1e15, 1e18, 1e25, 1e36])
def test_squares_neither_overflow_nor_vanish(magnitude, dtype, device):
    grads = normal([(1000,), (37,)], dtype, scale=magnitude)
    ours = grad_norm(on(device, grads), backend="cuda").norm.cpu()
    torch.testing.assert_close(ours, grad_norm(grads, backend="reference").norm, rtol=RTOL, atol=0)


def test_magnitudes_far_apart_in_one_vector(device):
    grads = [torch.tensor([1e-30, 3e19, 1e-25, 1.0, 0.0, 2e19, 1e-40])]
    ours = grad_norm(on(device, grads), backend="cuda").norm.cpu()
    torch.testing.assert_close(ours, grad_norm(grads, backend="reference").norm, rtol=RTOL, atol=0)


def test_zeros_and_nothing(device):
    assert grad_norm([torch.zeros(5000, device=device)], 1.0, backend="cuda").clip.tolist() == [1.0, 0.0]
    assert grad_norm([torch.zeros(0, 3, device=device)], 1.0, backend="cuda").norm.item() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_addresses_that_vectors_cannot_use(dtype, device):
    grads = normal([(5, 64), (801,)], dtype)
    expected = grad_norm(grads, weights=grads, backend="reference")
    there = [torch.empty(g.numel() + 1, dtype=dtype, device=device)[1:].view(g.shape).copy_(g) for g in grads]
    for weights in (there, on(device, grads)):
        ours = grad_norm(there, weights=weights, backend="cuda")
        torch.testing.assert_close(ours.norm.cpu(), expected.norm, rtol=RTOL, atol=0)
        for dots, exact in zip(ours.row_dots, expected.row_dots, strict=True):
            torch.testing.assert_close(dots.cpu(), exact, rtol=RTOL, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_gradients_give_the_same_bits(dtype, device):
    there = on(device, normal(SHAPES, dtype))
    results = [grad_norm(there, 1.0, weights=there, backend="cuda") for _ in range(3)]
    for other in results[1:]:
        assert torch.equal(bits(results[0].norm), bits(other.norm))
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(results[0].row_dots, other.row_dots, strict=True))


@pytest.mark.parametrize("count, launches", [(1, 2), (600, 2), (601, 3)])
def test_a_list_is_one_launch_for_600_tensors_and_one_more(emulated, count, launches):
    grads = normal([(7,)] * count, torch.float32)
    before = emulated.launches()
    ours = grad_norm(grads, 1.0, backend="cuda")
    assert emulated.launches() - before == launches
    torch.testing.assert_close(ours.norm, grad_norm(grads, backend="reference").norm, rtol=RTOL, atol=0)
