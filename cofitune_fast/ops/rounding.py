"""Stochastic rounding of float32 to bfloat16, and its exact split into two halves, in plain torch.

This is the specification of csrc/include/cofitune/random.h and bf16.h.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

_WORD = 0xFFFFFFFF
_LONG = 0xFFFFFFFFFFFFFFFF


def _splitmix64(value: int) -> int:
    """SplitMix64 (Steele, Lea and Flood, 2014): increment the state once, and return its output."""
    value = (value + 0x9E3779B97F4A7C15) & _LONG
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _LONG
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _LONG
    return value ^ (value >> 31)


def random_key(seed: int, step: int, high: int) -> tuple[int, int]:
    """Two 32-bit keys, shared by all elements whose 64-bit counter has the upper word `high`."""
    mixed = _splitmix64(_splitmix64(_splitmix64(seed & _LONG) ^ (step & _LONG)) ^ high)
    return mixed & _WORD, mixed >> 32


def random32(count: int, *, seed: int, step: int, offset: int = 0, device: torch.device | str = "cpu") -> torch.Tensor:
    """Uniform 32-bit random numbers that depend only on (seed, step, counter).

    Args:
        count: how many numbers; number i has the 64-bit counter offset + i.

    Returns:
        int64 [count] with values in [0, 2^32).
    """
    counter = torch.arange(count, dtype=torch.int64, device=device) + offset
    low, high = counter & _WORD, counter >> 32
    x = torch.empty_like(counter)
    first, last = offset >> 32, (offset + max(count, 1) - 1) >> 32
    for word in range(first, last + 1):
        key, tweak = random_key(seed, step, word)
        mixed = low ^ key
        mixed = ((mixed ^ (mixed >> 16)) * 0x21F0AAAD) & _WORD
        mixed = ((mixed ^ (mixed >> 15)) + tweak) & _WORD
        mixed = (mixed * 0x735A2D97) & _WORD
        x = torch.where(high == word, mixed ^ (mixed >> 15), x)
    return x


class Random16(NamedTuple):
    """16 random bits for each of three values, from 32. The second moment shares 8 bits with each of the others."""

    weight: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor


def random16(shape: torch.Size, *, seed: int, step: int, offset: int, device: torch.device) -> Random16:
    """Random numbers for the elements of a tensor in row-major order: int64 of its shape, in [0, 65535]."""
    x = random32(math.prod(shape), seed=seed, step=step, offset=offset, device=device).view(shape)
    return Random16(x >> 16, x & 0xFFFF, x >> 8 & 0xFFFF)


def stochastic_round(x: torch.Tensor, *, seed: int, step: int, offset: int = 0) -> torch.Tensor:
    """Round float32 `x` to one of its two bfloat16 neighbors, such that the mean is exact.

    Args:
        x: float32, any shape.
        offset: counter of the first element; elements count in row-major order.

    Returns:
        bfloat16, shape of `x`.
    """
    return round_by(x, random16(x.shape, seed=seed, step=step, offset=offset, device=x.device).weight)


def round_by(x: torch.Tensor, random: torch.Tensor) -> torch.Tensor:
    """`stochastic_round` with given random numbers: int64, x's shape, uniform in [0, 65535].

    The random number is added to the bits, and the lower half is cut off. Infinities stay; a NaN becomes quiet.
    """
    bits = x.contiguous().view(torch.int32).to(torch.int64) & _WORD
    bits = torch.where(torch.isfinite(x), bits + random, bits | (torch.isnan(x).to(torch.int64) << 22))
    return (bits >> 16).to(torch.int16).view(torch.bfloat16)


def split(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split float32 into the nearest bfloat16 (halves away from zero) and an int16 remainder.

    `join` restores every bit, except that a NaN becomes a quiet one without remainder.
    """
    bits = x.contiguous().view(torch.int32).to(torch.int64) & _WORD
    nan = torch.isnan(x)
    high = torch.where(nan, (bits >> 16) | 0x40, (bits + 0x8000) >> 16)
    low = torch.where(nan, 0, bits & 0xFFFF)
    return high.to(torch.int16).view(torch.bfloat16), low.to(torch.int16)


def join(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """Restore the float32 values that `split` took apart."""
    return ((high.view(torch.int16).int() << 16) + low.int()).view(torch.float32)
