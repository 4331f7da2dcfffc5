"""The 8-bit codes of moments: what they stand for, how they are chosen, and how far they may be off."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.ops_cases import EVEN_UNIT, code_values, per_element

from cofitune_fast.ops.eight_bit import block_scales, decode, encode

MOMENTS = ["first", "second"]
EXTREMES = [0, 1, 32767, 32768, 65534, 65535]  # of the random numbers
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
LOST = 1.875 * SMALLEST_NORMAL  # a block whose largest magnitude is below has the scale 0


def chance(shape, seed: int = 0) -> torch.Tensor:
    return torch.randint(65536, shape, generator=torch.Generator().manual_seed(seed))


def unit(moment: str) -> float:
    return EVEN_UNIT[MOMENTS.index(moment)]


@pytest.mark.parametrize("moment", MOMENTS)
def test_codes_are_small_floats(moment):
    codes = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(decode(codes, torch.ones(1), moment).double(), code_values(moment))


@pytest.mark.parametrize("moment", MOMENTS)
def test_codes_rise_with_their_values_and_have_the_range_they_claim(moment):
    positive = torch.arange(128 if moment == "first" else 256, dtype=torch.uint8)
    values = decode(positive, torch.ones(1), moment)
    assert (values.diff() > 0).all()
    assert values[0] == 0 and values[1] == unit(moment) and values[-1] == 1.875
    if moment == "first":
        negative = decode(positive + 128, torch.ones(1), moment)
        assert torch.equal(negative, -values) and negative[0].signbit()


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("scale", [1.0, 0.1, 3.3e-7, 1.1, 1e30, 1.2e-38, 1.8e38])
def test_every_code_survives_decoding_and_encoding(scale, moment):
    """With any random number. In units of a tiny scale the smallest values are denormal or 0 themselves."""
    codes, scales = torch.arange(256, dtype=torch.uint8), torch.tensor([scale])
    x = decode(codes, scales, moment)
    exact = (x.abs() >= SMALLEST_NORMAL) | (x == 0) & (codes % 128 == 0)
    assert exact.sum() > 20 or scale < 1e-37
    for random in EXTREMES:
        again = encode(x, scales, torch.full((256,), random), moment)
        assert torch.equal(again[exact], codes[exact])


@pytest.mark.parametrize("moment", MOMENTS)
def test_encoding_rises_with_its_argument_whatever_the_random_number(moment):
    x = torch.cat([torch.zeros(1), torch.logspace(-45, math.log10(1.875), 50_000)]).sort().values
    scales = torch.ones(-(-len(x) // 256))
    for random in EXTREMES:
        codes = encode(x, scales, torch.full(x.shape, random), moment).int()
        assert (codes.diff() >= 0).all()


@pytest.mark.parametrize("moment", MOMENTS)
@settings(max_examples=100, deadline=None)
@given(top=st.floats(-37, 37), spread=st.floats(0, 12), shape=st.tuples(st.integers(1, 4), st.integers(1, 600)),
       seed=st.integers(0, 99))
def test_the_error_is_below_an_eighth_or_one_even_unit(moment, top, spread, shape, seed):
    """Of magnitudes spread over up to twelve powers of ten, anywhere in float32."""
    generator = torch.Generator().manual_seed(seed)
    x = 10.0 ** (top - spread * torch.rand(shape, generator=generator, dtype=torch.float64))
    x = x.float() * (1 if moment == "second" else torch.randint(2, shape, generator=generator) * 2 - 1)
    scales = block_scales(x)
    back = decode(encode(x, scales, chance(shape, seed), moment), scales, moment)
    even = unit(moment) * per_element(scales, x.shape).double()
    bound = torch.maximum(x.double().abs() / 8, even) * (1 + 1e-6) + LOST
    assert ((back.double() - x.double()).abs() <= bound).all()
    largest = x.abs().amax(-1)
    torch.testing.assert_close(back.abs().amax(-1), largest, rtol=1e-6, atol=LOST)


@pytest.mark.parametrize("moment", MOMENTS)
def test_rounding_is_stochastic_and_right_on_average(moment):
    """2^16 roundings of each of some values, normal and evenly spaced: 5 binomial standard errors, passed by chance in
    6e-7 of cases, and 2^-16 for the 16 bits that choose."""
    count = 1 << 16
    for value in (1.8, 1.01, 0.3, 5e-3, 3.3 * unit(moment), 0.4 * unit(moment), 7.9 * unit(moment)):
        x = torch.full((count,), value)
        scales = torch.ones(count // 256)
        decoded = decode(encode(x, scales, torch.arange(65536), moment), scales, moment).double()
        if moment == "second" and value < unit(moment):
            assert (decoded == unit(moment)).all()  # it is divided by: the bias upward is meant
            continue
        assert len(decoded.unique()) == 2
        low, high = decoded.min().item(), decoded.max().item()
        share = (x[0].item() - low) / (high - low)
        assert abs((decoded == high).double().mean().item() - share) < 2**-15  # all random numbers, each once
        drawn = decode(encode(x, scales, chance((count,)), moment), scales, moment).double()
        error = math.sqrt(share * (1 - share) / count)
        assert abs((drawn == high).double().mean().item() - share) < 5 * error + 2**-16


def test_a_positive_second_moment_never_becomes_zero():
    """As long as it is not 2^-149 of the scale, where float32 itself ends."""
    x = torch.logspace(-44, 0, 3000).unsqueeze(-1).repeat(1, 2)
    x[:, 1] = 1.875  # a scale of 1 for each row
    for random in EXTREMES:
        codes = encode(x, block_scales(x), torch.full(x.shape, random), "second")
        assert (codes > 0).all()
    assert encode(torch.zeros(3), torch.ones(1), torch.full((3,), 65535), "second").tolist() == [0, 0, 0]


@pytest.mark.parametrize("moment", MOMENTS)
def test_blocks_of_zeros_and_of_the_tiniest_numbers_are_zero(moment):
    for value in (0.0, 1e-45, 2.2e-38):
        x = torch.full((2, 300), value)
        scales = block_scales(x)
        assert scales.shape == (2, 2) and not scales.any()
        codes = encode(x, scales, torch.full(x.shape, 65535), moment)
        assert not codes.any() and not decode(codes, scales, moment).any()
    x = torch.full((1,), 2.3e-38)  # above 1.875 of the smallest normal float32
    scales = block_scales(x)
    assert scales >= SMALLEST_NORMAL
    torch.testing.assert_close(decode(encode(x, scales, chance((1,)), moment), scales, moment), x, rtol=1e-6, atol=0)


def test_each_row_has_blocks_of_its_own():
    x = torch.zeros(3, 600)
    x[0, 255], x[1, 256], x[2, 599] = 1.875, -3.75, 7.5
    scales = block_scales(x)
    torch.testing.assert_close(scales, torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 4]]))


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_spoil_their_block_and_no_other(bad):
    x = torch.ones(1, 600)
    x[0, 300] = bad
    scales = block_scales(x)
    for moment in MOMENTS:
        back = decode(encode(x, scales, chance(x.shape), moment), scales, moment)
        assert not back[0, 256:512].isfinite().all() and not back[0, 300].isfinite()
        others = torch.cat([back[0, :256], back[0, 512:]])
        torch.testing.assert_close(others, torch.ones(344), rtol=1e-6, atol=0)
