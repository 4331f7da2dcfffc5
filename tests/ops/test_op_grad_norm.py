"""grad_norm against float64 and torch, its flag, and its independence of threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.ops_cases import BACKENDS, make_case, needs_native

from cofitune_fast.ops import grad_norm


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("storage", ["fp32", "bf16_sr"])
@pytest.mark.parametrize("max_norm", [None, 1.0, 1e6])
def test_norm_and_factor_are_those_of_torch(storage, max_norm, backend):
    grads = make_case(storage).grads
    result = grad_norm(grads, max_norm, backend=backend)
    exact = torch.cat([g.double().flatten() for g in grads]).norm()
    torch.testing.assert_close(result.norm.double(), exact, rtol=1e-7, atol=0)
    factor = 1.0 if max_norm is None else min(1.0, max_norm / (exact.item() + 1e-6))
    torch.testing.assert_close(result.clip, torch.tensor([factor, 0.0]), rtol=1e-6, atol=0)
    assert result.norm.dtype == torch.float32 and result.norm.shape == ()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("storage", ["fp32", "bf16_sr"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_element_sets_the_flag(bad, storage, backend):
    grads = make_case(storage).grads
    grads[2][4096] = bad  # the last of an odd number of elements
    result = grad_norm(grads, 1.0, backend=backend)
    assert result.clip.tolist() == [0.0, 1.0] and not result.norm.isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_and_denormal_gradients_neither_overflow_nor_vanish(backend):
    assert grad_norm([torch.full((4,), 1e30)], backend=backend).norm.item() == pytest.approx(2e30, rel=1e-6)
    assert grad_norm([torch.full((4,), 1e-40)], backend=backend).norm.item() == pytest.approx(2e-40, rel=1e-4)
    assert grad_norm([], 1.0, backend=backend).clip.tolist() == [1.0, 0.0]
    assert grad_norm([torch.zeros(0), torch.zeros(3)], 1.0, backend=backend).norm.item() == 0


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_threads_nor_the_instruction_set_change_a_bit(dtype):
    from cofitune_fast.ops import native

    grads = [torch.randn(n, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (200_003, 1, 65_536)]
    threads, best = torch.get_num_threads(), native.isa()
    norms = set()
    try:
        for isa in ("baseline", "avx2", "avx512"):
            try:
                native.library().use_isa(isa)
            except ValueError:
                continue
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                norms.add(native_sum(grads))
    finally:
        torch.set_num_threads(threads)
        native.library().use_isa(best)
    assert len(norms) == 1


def native_sum(grads: list[torch.Tensor]) -> float:
    from cofitune_fast.ops.grad_norm import _sum_of_squares_native

    return _sum_of_squares_native(grads).item()


@needs_native
@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 200), max_size=5), bf16=st.booleans())
def test_native_agrees_with_the_reference_for_any_sizes(sizes, bf16):
    grads = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in sizes]
    grads = [g.bfloat16() if bf16 else g for g in grads]
    ours, reference = (grad_norm(grads, 0.5, backend=backend) for backend in ("cpu", "reference"))
    torch.testing.assert_close(ours.norm, reference.norm, rtol=1e-7, atol=0)
    torch.testing.assert_close(ours.clip, reference.clip, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_library_op_keeps_its_schema(backend):
    grads = [torch.randn(3, 5), torch.randn(7)]
    torch.library.opcheck(torch.ops.cofitune_fast.grad_norm.default, (grads, 1.0, backend))
