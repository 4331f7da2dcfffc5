"""grad_norm against float64 and torch, its flag, its row dots, and its independence of threads."""

from __future__ import annotations

import math

import pytest
import torch
from cases import pairwise
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.ops_cases import BACKENDS, ISAS, ON_CPU, bits, instruction_set, make_case, needs_native, threads

from cofitune_fast.ops import grad_norm

NORM = {"rtol": 2e-7, "atol": 0.0}  # the reference: one rounding to float32; native: sums of eight products as well
ROW_DOT = 3e-7  # of the sum of the magnitudes of a row's terms
SHAPES = [(3, 5), (64, 33), (2, 3, 700), (4, 1153), (1, 40_000), (17,), (4097,), (), (0, 4), (4, 0)]


def exact_norm(grads):
    return torch.cat([g.double().flatten() for g in grads]).norm()


def random_pairs(shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator).to(dtype) for shape in shapes] for _ in range(2)]


def assert_row_dots(dots, weights, grads):
    for dot, w, g in zip(dots, weights, grads, strict=True):
        products = w.double() * g.double()
        bound = ROW_DOT * products.abs().sum(-1)
        assert dot.dtype == torch.float32 and dot.shape == w.shape[:-1]
        assert ((dot.double() - products.sum(-1)).abs() <= bound).all()


@pairwise({"max_norm": [None, 1.0, 1e6, 1e300], "storage": ["fp32", "bf16_sr"], "backend": BACKENDS})
def test_norm_and_factor_are_those_of_torch(storage, max_norm, backend):
    grads = make_case(storage).grads
    result = grad_norm(grads, max_norm, backend=backend)
    exact = exact_norm(grads)
    torch.testing.assert_close(result.norm.double(), exact, **NORM)
    factor = 1.0 if max_norm is None else min(1.0, max_norm / (exact.item() + 1e-6))
    torch.testing.assert_close(result.clip, torch.tensor([factor, 0.0]), rtol=1e-6, atol=0)
    assert result.norm.dtype == torch.float32 and result.norm.shape == () and result.row_dots is None


@needs_native
@pytest.mark.parametrize("max_norm", [1e-3, 0.7, 3.3, 4.9999995, 5.0, 5.000001, 17.0])
def test_the_factor_has_the_bits_of_the_reference(max_norm):
    ours, reference = (grad_norm([torch.tensor([3.0, 4.0])], max_norm, backend=b).clip for b in ("cpu", "reference"))
    assert torch.equal(ours, reference)


@pairwise({"bad": [float("nan"), float("inf"), -float("inf")], "weighted": [False, True],
           "storage": ["fp32", "bf16_sr"], "backend": BACKENDS})
def test_one_bad_element_sets_the_flag(weighted, bad, storage, backend):
    grads = make_case(storage).grads
    weights = [torch.ones_like(g) for g in grads] if weighted else None
    grads[2][4096] = bad  # the last of an odd number of elements
    result = grad_norm(grads, 1.0, weights=weights, backend=backend)
    assert result.clip.tolist() == [0.0, 1.0] and not result.norm.isfinite()
    if weighted:
        assert [bool(dot.isfinite().all()) for dot in result.row_dots] == [index != 2 for index in range(len(grads))]


@pairwise({"size": [1e30, 1e19, 1e10, 1e-10, 1e-12, 1e-19, 1e-22, 1e-30, 1e-38],
           "dtype": [torch.float32, torch.bfloat16], "backend": BACKENDS})
def test_squares_neither_overflow_nor_vanish(size, dtype, backend):
    generator = torch.Generator().manual_seed(0)
    grads = [(torch.randn(n, generator=generator) * size).to(dtype) for n in (5, 1000, 40_001)]
    torch.testing.assert_close(grad_norm(grads, backend=backend).norm.double(), exact_norm(grads), **NORM)
    dot = grad_norm(grads, weights=[torch.ones_like(g) for g in grads], backend=backend).row_dots
    assert_row_dots(dot, [torch.ones_like(g) for g in grads], grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_denormal_zero_and_no_gradients(backend):
    assert grad_norm([torch.full((4,), 1e-40)], backend=backend).norm.item() == pytest.approx(2e-40, rel=1e-4)
    assert grad_norm([], 1.0, backend=backend).clip.tolist() == [1.0, 0.0]
    assert grad_norm([], 1.0, weights=[], backend=backend).row_dots == []
    assert grad_norm([torch.zeros(0), torch.zeros(3)], 1.0, backend=backend).norm.item() == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_dots_against_float64(dtype, backend):
    weights, grads = random_pairs(SHAPES, dtype)
    result = grad_norm(grads, 1.0, weights=weights, backend=backend)
    assert_row_dots(result.row_dots, weights, grads)
    torch.testing.assert_close(result.norm.double(), exact_norm(grads), **NORM)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_dots_that_cancel(dtype, backend):
    (weight,), (grad,) = random_pairs([(5, 1000)], dtype)
    weight, grad = torch.cat([weight, weight], 1), torch.cat([grad, -grad], 1)
    weight[:, 0] += 0.5
    assert_row_dots(grad_norm([grad], weights=[weight], backend=backend).row_dots, [weight], [grad])


@pytest.mark.parametrize("backend", BACKENDS)
def test_row_dots_whose_products_overflow_float32(backend):
    grad, weight = torch.tensor([[1e19, -8e18, 3.0], [1.0, 1.0, 1.0]]), torch.tensor([[1e20, 1e20, 2.0]] * 2)
    assert_row_dots(grad_norm([grad], weights=[weight], backend=backend).row_dots, [weight], [grad])


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_row_dot_is_the_gradient_of_a_gate_of_ones(backend):
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((7, 5), (3, 5)))
    gate = torch.ones(7, requires_grad=True)
    torch.tanh(gate * (x @ weight.T)).sum().backward()
    dots = grad_norm([weight.grad], weights=[weight], backend=backend).row_dots
    torch.testing.assert_close(dots[0], gate.grad, rtol=1e-5, atol=1e-6)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_threads_nor_the_instruction_set_change_a_bit(dtype, isa):
    shapes = [(300_003,), (1,), (100, 10_000), (3, 40_001), (2000, 96)]
    weights, grads = random_pairs(shapes, dtype)
    expected = grad_norm(grads, 1.0, weights=weights, backend="cpu")
    without = grad_norm(grads, 1.0, backend="cpu")
    with instruction_set(isa):
        for count in (1, 2, 5):
            with threads(count):
                result = grad_norm(grads, 1.0, weights=weights, backend="cpu")
                assert torch.equal(grad_norm(grads, 1.0, backend="cpu").norm, without.norm)
            assert torch.equal(result.norm, expected.norm) and torch.equal(result.clip, expected.clip)
            for ours, theirs in zip(result.row_dots, expected.row_dots, strict=True):
                assert torch.equal(bits(ours), bits(theirs))


@needs_native
@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.integers(0, 5), min_size=1, max_size=4), columns=st.integers(0, 1300), bf16=st.booleans(),
    offset=st.integers(0, 3),
)
def test_native_agrees_with_the_reference_for_any_sizes_and_places(rows, columns, bf16, offset):
    weights, grads = (
        [x.flatten()[offset:].view(n, columns) for x, n in zip(tensors, rows, strict=True)]
        for tensors in random_pairs([(n * columns + offset,) for n in rows], torch.bfloat16 if bf16 else torch.float32)
    )
    ours, reference = (grad_norm(grads, 0.5, weights=weights, backend=backend) for backend in ("cpu", "reference"))
    torch.testing.assert_close(ours.norm, reference.norm, rtol=3e-7, atol=0)
    torch.testing.assert_close(ours.clip, reference.clip, rtol=1e-6, atol=0)
    assert_row_dots(ours.row_dots, weights, grads)
    torch.testing.assert_close(grad_norm(grads, backend="cpu").norm, reference.norm, rtol=3e-7, atol=0)


@pytest.mark.parametrize("backend", ON_CPU)
def test_the_library_op_keeps_its_schema(backend):
    weights, grads = random_pairs([(3, 5), (7,), ()])
    op = torch.ops.cofitune_fast.grad_norm.default
    torch.library.opcheck(op, (grads, weights, 1.0, backend))
    torch.library.opcheck(op, (grads, [], math.inf, backend))


def test_it_compiles_without_a_graph_break():
    compiled = torch.compile(lambda grads: grad_norm(grads, 1.0).clip, fullgraph=True, backend="eager")
    grads = [torch.randn(3, 5), torch.randn(7)]
    assert torch.equal(compiled(grads), grad_norm(grads, 1.0).clip)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_zero_tensor_without_memory_counts_as_zeros(backend):
    grads = [torch._efficientzerotensor(7), torch.tensor([3.0, 4.0])]
    weights = [torch.ones(7), torch.tensor([1.0, 2.0])]
    norm, _, dots = grad_norm(grads, weights=weights, backend=backend)
    assert norm.item() == 5 and [dot.item() for dot in dots] == [0, 11]
