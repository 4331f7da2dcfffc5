"""log_sum_exp and scaled_softmax_, element by element against float64."""

from __future__ import annotations

import pytest
import torch
from cases import pairwise
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.ops_cases import BACKENDS, ISAS, ON_CPU, instruction_set, needs_native

from cofitune_fast import ops
from cofitune_fast.errors import CofituneError
from cofitune_fast.ops import log_sum_exp, scaled_softmax_

UNIT = 2.0**-24  # half a unit in the last place: what one rounding of a float32 may change, relative to it
HALF = {torch.float32: UNIT, torch.bfloat16: 2.0**-8}  # the same of the dtypes
SMALLEST = 2.0**-126  # of normal numbers; below it a probability may be 0
DTYPES = list(HALF)


def logits(rows, vocabulary, scale=3.0, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocabulary, generator=generator) * scale).to(dtype)


def check(backend, z, scales=None):
    """Bounds that follow the roundings: of the logarithm of the sum, of the logit minus it, of e to that, of the
    result."""
    exact_sums = z.double().logsumexp(-1)
    off = 4 * UNIT * (1 + exact_sums.abs())
    sums = log_sum_exp(z, backend=backend)
    assert sums.dtype == torch.float32
    within(sums, exact_sums, off)
    scales = torch.linspace(-2, 3, len(z)) if scales is None else scales
    log_q = z.double() - exact_sums[:, None]
    exact = log_q.exp() * scales.double()[:, None]
    written = z.clone()
    assert scaled_softmax_(written, sums, scales, backend=backend) is written
    relative = off[:, None] + UNIT * log_q.clamp_min(-1e30).abs() + 4 * UNIT + 1.01 * HALF[z.dtype]
    within(written, exact, exact.abs() * relative + SMALLEST * scales.abs().double()[:, None])


def within(ours, exact, bound):
    wrong = ~((ours.double() - exact).abs() <= bound)
    assert not wrong.any(), f"{wrong.nonzero()[0].tolist()}: {ours[wrong]} for {exact[wrong]}, within {bound[wrong]}"


@pairwise({"vocabulary": [1, 2, 63, 64, 65, 1023, 1025, 32_003], "dtype": DTYPES, "backend": ON_CPU})
def test_any_vocabulary(vocabulary, dtype, backend):
    check(backend, logits(3, vocabulary, dtype=dtype))


@pairwise({"scale": [1e-3, 1e2, 1e4], "dtype": DTYPES, "backend": ON_CPU})
def test_extreme_logits(scale, dtype, backend):
    z = logits(4, 5001)
    z[0, 4000] = scale
    z[1:] *= scale
    z[2] -= 100 * scale
    z[3, ::2] = -torch.inf
    check(backend, z.to(dtype))


@pytest.mark.parametrize("backend", ON_CPU)
def test_more_than_one_block_of_the_reference(backend):
    check(backend, logits(400, 5000, dtype=torch.bfloat16))


@pairwise({"place": [0, 64, 300], "dtype": DTYPES, "backend": ON_CPU})
def test_a_row_that_is_not_a_number_stays_alone(place, dtype, backend):
    z = logits(3, 301, dtype=dtype)
    sums, scales = log_sum_exp(z, backend=backend), torch.ones(3)
    expected = scaled_softmax_(z.clone(), sums, scales, backend=backend)
    z[1, place] = torch.nan
    found = log_sum_exp(z, backend=backend)
    assert torch.equal(found[[0, 2]], sums[[0, 2]]) and found[1].isnan()
    scaled_softmax_(z, found, scales, backend=backend)
    assert torch.equal(z[[0, 2]], expected[[0, 2]]) and z[1].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_infinite_logit_is_no_finite_sum(backend):
    z = logits(2, 100)
    z[0, 7] = torch.inf
    sums = log_sum_exp(z, backend=backend)
    assert not sums[0].isfinite() and sums[1].isfinite()


@pytest.mark.parametrize("backend", ON_CPU)
def test_of_no_rows_nothing(backend):
    z = torch.zeros(0, 7)
    assert log_sum_exp(z, backend=backend).shape == (0,)
    assert scaled_softmax_(z, torch.zeros(0), torch.zeros(0), backend=backend).shape == (0, 7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_have_the_reference(dtype):
    z = logits(3, 50, dtype=dtype)
    sums = log_sum_exp(z)
    assert sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = 2 * z.to(sums.dtype).softmax(-1)
    scaled_softmax_(z, sums, torch.full_like(sums, 2.0))
    torch.testing.assert_close(z, expected.to(dtype), rtol=1e-3 if dtype == torch.float16 else 1e-12, atol=0)
    with pytest.raises(CofituneError, match="has the reference only; use backend='auto' or 'reference', not 'cpu'"):
        log_sum_exp(z, backend="cpu")


@needs_native
@pairwise({"dtype": DTYPES, "threads": [1, 3], "isa": ISAS})
def test_native_bits_depend_neither_on_threads_nor_on_the_instruction_set(dtype, threads, isa):
    z, scales = logits(9, 40_001, dtype=dtype), torch.linspace(-1, 1, 9)
    sums = log_sum_exp(z, backend="cpu")
    expected = scaled_softmax_(z.clone(), sums, scales, backend="cpu")
    former = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with instruction_set(isa):
            assert torch.equal(log_sum_exp(z, backend="cpu"), sums)
            assert torch.equal(scaled_softmax_(z, sums, scales, backend="cpu"), expected)
    finally:
        torch.set_num_threads(former)


@needs_native
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 4), vocabulary=st.integers(1, 3000), scale=st.floats(0, 100), seed=st.integers(0, 99),
       dtype=st.sampled_from(DTYPES))
def test_any_shape_and_scale(rows, vocabulary, scale, seed, dtype):
    check("cpu", logits(rows, vocabulary, scale, dtype, seed))


Z = torch.zeros(2, 5)


@pytest.mark.parametrize(("change", "words"), [
    ({"logits": torch.zeros(5)}, r"logits must have two dimensions, but their shape is \[5\]"),
    ({"logits": torch.zeros(2, 0)}, r"logits have no columns; the vocabulary must have at least one token"),
    ({"logits": torch.zeros(2, 5, dtype=torch.int32)}, r"logits must be float32 or .* but it is int32"),
    ({"logits": torch.zeros(5, 2).T}, r"logits must be contiguous; pass logits.contiguous\(\)"),
    ({"log_sums": torch.zeros(3)}, r"log_sums must have shape \[2\], but its shape is \[3\]"),
    ({"scales": torch.zeros(2).bfloat16()}, r"scales must be float32, but it is bfloat16"),
    ({"scales": torch.zeros(4)[::2]}, r"scales must be contiguous"),
    ({"scales": torch.zeros(2, device="meta")}, r"logits\[0\] is on cpu and scales\[0\] is on meta"),
    ({"backend": "cuda"}, r"the backend 'cuda' cannot run \(this op has no CUDA C\+\+ kernel"),
])
def test_bad_input(change, words):
    arguments = {"logits": Z.clone(), "log_sums": torch.zeros(2), "scales": torch.ones(2), **change}
    with pytest.raises(CofituneError, match=words):
        ops.scaled_softmax_(arguments.pop("logits"), arguments.pop("log_sums"), arguments.pop("scales"), **arguments)


def test_library_checks():
    """Schema, fake and mutation, as torch's own checker sees them."""
    torch.library.opcheck(torch.ops.cofitune_fast.log_sum_exp.default, (Z, "auto"))
    torch.library.opcheck(torch.ops.cofitune_fast.scaled_softmax_.default,
                          (Z.clone(), torch.zeros(2), torch.ones(2), "auto"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ON_CPU)
def test_infinite_logits_are_those_of_torch(dtype, backend):
    z = logits(7, 5001, dtype=dtype)
    z[0, 4500], z[1, [3, 4700]], z[2, 10], z[3], z[4, 1:] = torch.inf, torch.inf, -torch.inf, -torch.inf, -torch.inf
    z[5, 4999], z[5, 7], z[6], z[6, 4800] = torch.inf, torch.nan, -torch.inf, torch.nan
    sums = log_sum_exp(z, backend=backend)
    torch.testing.assert_close(sums, z.float().logsumexp(-1), rtol=1e-6, atol=0, equal_nan=True)
    assert sums[:2].isposinf().all() and sums[3].isneginf() and sums[5:].isnan().all()
