"""kernels/grad_norm.py against float64."""

from __future__ import annotations

import pytest
import torch

from cofitune_fast.ops import triton

DTYPES = [torch.float32, torch.bfloat16]
# A float32 sum of up to 70 thousand terms in a tree of short chains: some ten roundings of 6e-8 each.
SQUARES = {"rtol": 1e-6, "atol": 0}
# Row dots cancel: a thousand terms of order 1, whatever their sum is.
DOTS = {"rtol": 1e-6, "atol": 2e-5}


@pytest.fixture
def kernel(device):
    return triton.kernel("grad_norm")


def normal(shape, dtype, device, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


def squares(tensors):
    return sum((tensor.double().square().sum() for tensor in tensors), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (17,), (4096,), (4097,), (3, 5), (32768,), (32769,), (2, 3, 11600)])
def test_sum_of_squares_of_one_tensor(kernel, device, shape, dtype):
    grad = normal(shape, dtype, device)
    result = kernel.sum_of_squares([grad])
    assert result.shape == () and result.device == grad.device
    torch.testing.assert_close(result.cpu(), squares([grad.cpu()]), **SQUARES)


def test_sum_of_squares_of_a_list(kernel, device):
    shapes = [(5,), (0,), (40000,), (64, 33), (0, 7)]
    grads = [normal(shape, dtype, device, seed) for seed, shape in enumerate(shapes) for dtype in DTYPES]
    torch.testing.assert_close(kernel.sum_of_squares(grads).cpu(), squares([g.cpu() for g in grads]), **SQUARES)


@pytest.mark.parametrize("position", [0, 4096, 32768, 36000])
@pytest.mark.parametrize("size", [36001, 36864])
def test_every_element_counts_once(kernel, device, size, position):
    grad = torch.zeros(size, device=device)
    grad[position] = 3
    assert kernel.sum_of_squares([grad]).item() == 9


def test_no_gradients_and_empty_gradients_have_no_squares(kernel, device):
    assert kernel.sum_of_squares([]).item() == 0
    result = kernel.sum_of_squares([torch.empty(0, 3, device=device)])
    assert result.item() == 0 and result.device.type == device


def test_a_view_that_starts_off_a_16_byte_boundary(kernel, device):
    grad = normal(9000, torch.bfloat16, device)[1:]
    torch.testing.assert_close(kernel.sum_of_squares([grad]).cpu(), squares([grad.cpu()]), **SQUARES)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # NumPy, which the interpreter computes with
@pytest.mark.parametrize(
    "value, finite", [(1.8e19, True), (1.9e19, False), (float("inf"), False), (float("nan"), False)]
)
def test_squares_overflow_where_float32_does_and_say_so(kernel, device, value, finite):
    grad = torch.zeros(5000, device=device)
    grad[4999] = value
    assert kernel.sum_of_squares([grad]).isfinite().item() is finite


def test_the_same_gradients_give_the_same_bits_in_any_company(kernel, device):
    grads = [normal(shape, torch.float32, device) for shape in [(70001,), (300, 7), (4096,)]]
    assert kernel.sum_of_squares(grads).equal(kernel.sum_of_squares([grad.clone() for grad in grads]))
    alone = torch.stack([kernel.sum_of_squares([grad]) for grad in grads]).sum()
    torch.testing.assert_close(kernel.sum_of_squares(grads), alone, rtol=1e-14, atol=0)


SHAPES = [(1, 1), (1, 17), (17, 1), (5, 64), (4, 2048), (3, 2049), (2, 3, 5), (7,), (), (0, 4), (4, 0)]


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("grad_dtype", DTYPES)
def test_row_dots_and_squares_in_one_pass(kernel, device, weight_dtype, grad_dtype):
    weights = [normal(shape, weight_dtype, device, seed) for seed, shape in enumerate(SHAPES)]
    grads = [normal(shape, grad_dtype, device, seed + 100) for seed, shape in enumerate(SHAPES)]
    total, dots = kernel.sum_of_squares_and_row_dots(weights, grads)
    torch.testing.assert_close(total.cpu(), squares([grad.cpu() for grad in grads]), **SQUARES)
    for weight, grad, dot in zip(weights, grads, dots, strict=True):
        assert dot.shape == grad.shape[:-1] and dot.dtype == torch.float32
        torch.testing.assert_close(dot.cpu().double(), (weight.double() * grad.double()).sum(-1).cpu(), **DOTS)
    assert all(map(torch.equal, dots, kernel.row_dots(weights, grads)))


def test_permuting_rows_permutes_their_dots(kernel, device):
    weight, grad = (normal((9, 300), torch.bfloat16, device, seed) for seed in (0, 1))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2)).to(device)
    [dots], [permuted] = kernel.row_dots([weight], [grad]), kernel.row_dots([weight[order]], [grad[order]])
    assert torch.equal(permuted, dots[order])


def test_a_row_that_is_not_finite_stays_alone(kernel, device):
    weight, grad = (normal((3, 40), torch.float32, device, seed) for seed in (0, 1))
    weight[1, 7] = float("nan")
    total, [dots] = kernel.sum_of_squares_and_row_dots([weight], [grad])
    assert dots.isfinite().tolist() == [True, False, True] and total.isfinite()
