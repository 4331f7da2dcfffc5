"""Counter-based random numbers, and float32 to bfloat16 by integer bits, in Triton.

csrc/include/cofitune/random.h and bf16.h explain both. A bfloat16 is held as a 16-bit integer, because Triton's
interpreter computes wrongly with the type itself.
"""

import triton
import triton.language as tl


@triton.jit
def float_bits(x):
    return x.to(tl.uint32, bitcast=True)


@triton.jit
def as_float(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def splitmix64(value):
    value = value + 0x9E3779B97F4A7C15
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB
    return value ^ (value >> 31)


@triton.jit
def random_key(seed, step, counter_high):
    """Return the key (uint64) of all elements whose 64-bit counter has this upper half (uint64)."""
    return splitmix64(splitmix64(splitmix64(seed.to(tl.uint64)) ^ step.to(tl.uint64)) ^ counter_high)


@triton.jit
def random32(key, counter_low):
    """Return 32 random bits (uint32) per element, from its key (uint64) and the lower half of its counter (uint32)."""
    x = counter_low ^ key.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = ((x ^ (x >> 15)) + (key >> 32).to(tl.uint32)) * 0x735A2D97
    return x ^ (x >> 15)


@triton.jit
def random_of_tile(seed, step, first, place):
    """Return 32 random bits (uint32) for the elements with the counters first + place (64 bits; int32 >= 0, any shape).
    """
    first = first.to(tl.uint64)
    low = first.to(tl.uint32) + place.to(tl.uint32)
    key = random_key(seed, step, first >> 32)
    next_key = key
    if (first.to(tl.uint32) >> 31) != 0:  # the lower half may overflow within the tile, which changes the upper half
        next_key = random_key(seed, step, (first >> 32) + 1)
    return random32(tl.where(low < first.to(tl.uint32), next_key, key), low)


@triton.jit
def random_of_weight(random):
    return random >> 16


@triton.jit
def random_of_first(random):
    return random & 0xFFFF


@triton.jit
def random_of_second(random):
    return (random >> 8) & 0xFFFF


@triton.jit
def bf16_to_float(bits):
    """Convert int16 bits of bfloat16 to float32."""
    return as_float(bits.to(tl.uint32) << 16)


@triton.jit
def is_nan(bits):
    return (bits & 0x7FFFFFFF) > 0x7F800000


@triton.jit
def nearest_bf16(x):
    """Convert float32 to int16 bits of the nearest bfloat16, ties to even; a NaN becomes a quiet NaN."""
    bits = float_bits(x)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(is_nan(bits), 0x7FC0, rounded).to(tl.int16)


@triton.jit
def stochastic_round(x, random16):
    """Convert float32 to int16 bits of one of the two neighbouring bfloat16 values; infinities stay, a NaN becomes
    quiet.
    """
    bits = float_bits(x)
    finite = (bits & 0x7FFFFFFF) < 0x7F800000
    bits = tl.where(finite, bits + random16, bits | (is_nan(bits).to(tl.uint32) << 22))
    return (bits >> 16).to(tl.int16)


@triton.jit
def split(x):
    """Split float32 into int16 bits of the nearest bfloat16 (ties away from zero) and a remainder; `join` undoes it."""
    bits = float_bits(x)
    nan = is_nan(bits)
    high = tl.where(nan, (bits >> 16) | 0x40, (bits + 0x8000) >> 16)
    return high.to(tl.int16), tl.where(nan, 0, bits).to(tl.int16)


@triton.jit
def join(high, low):
    return as_float((high.to(tl.uint32) << 16) + low.to(tl.int32).to(tl.uint32))
