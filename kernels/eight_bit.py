"""8-bit moments with a float32 scale per block, in Triton; csrc/include/cofitune/eight_bit.h explains the code.

EXPONENT_BITS is 4 for the first moment and 5 for the second.
"""

import triton
import triton.language as tl

from .rounding import as_float, float_bits

BLOCK = 256  # elements of a row under one scale


@triton.jit
def block_scale(x):
    """Return the scale of each row of a float32 tile: its largest magnitude over 1.875, or NaN if it holds one.

    Magnitudes are compared as integers, in which a NaN is the largest.
    """
    largest = tl.max((float_bits(x) & 0x7FFFFFFF).to(tl.int32, bitcast=True), axis=1)
    scale = as_float(largest) * 0.53333333
    return tl.where(scale < 2.0**-126, 0.0, scale)


@triton.jit
def inverse_scale(scale):
    return tl.where(scale == 0.0, 0.0, tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale))


@triton.jit
def encode_magnitude(x, random16, EXPONENT_BITS: tl.constexpr):
    """Return the code (uint32) of float32 x >= 0 in units of the scale; values above 1.875, and NaN, get the largest
    code.
    """
    TOP: tl.constexpr = 2**EXPONENT_BITS - 1  # exponent field of the values in [1, 2)
    MAX_CODE: tl.constexpr = TOP * 8 + 7
    PER_UNIT: tl.constexpr = 2.0 ** (TOP + 2)  # evenly spaced codes per unit below the smallest normal value
    REBIAS: tl.constexpr = (8 - ((127 - TOP) << 23)) % 2**32  # 8 is half a step of the random bits
    normal = (float_bits(x) + (random16 << 4) + REBIAS) >> 20
    noise = as_float((random16 << 7) | 0x3F800040) - 1.0  # (random16 + 1/2) / 2^16
    even = (x * PER_UNIT + noise).to(tl.int32).to(tl.uint32)
    code = tl.where(x < 2.0 ** (1 - TOP), even, normal)
    return tl.where(code < MAX_CODE, code, MAX_CODE)


@triton.jit
def decode_magnitude(bits, EXPONENT_BITS: tl.constexpr):
    """Decode a code that was shifted to the exponent and mantissa of a float32, where codes 0 ... 7 are denormal
    numbers.
    """
    TOP: tl.constexpr = 2**EXPONENT_BITS - 1
    return as_float(bits) * 2.0 ** (127 - TOP)


@triton.jit
def encode_first(m, inverse, random16):
    bits = float_bits(m)
    code = encode_magnitude(as_float(bits & 0x7FFFFFFF) * inverse, random16, 4)
    return ((bits >> 31 << 7) | code).to(tl.uint8)


@triton.jit
def decode_first(stored, scale):
    code = stored.to(tl.uint32)
    return decode_magnitude(((code & 0x80) << 24) | ((code & 0x7F) << 20), 4) * scale


@triton.jit
def encode_second(v, inverse, random16):
    """Encode a second moment; a positive one never becomes 0, because the update divides by it."""
    x = v * inverse
    code = encode_magnitude(x, random16, 5)
    return tl.where((code == 0) & (x > 0.0), 1, code).to(tl.uint8)


@triton.jit
def decode_second(stored, scale):
    return decode_magnitude(stored.to(tl.uint32) << 20, 5) * scale
