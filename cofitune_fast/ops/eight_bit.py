"""Moments in 8 bits with one scale per block, in plain torch: the specification of csrc/include/cofitune/eight_bit.h.

A block's scale is its largest magnitude over 1.875. A code is a small float of 3 mantissa bits, in units of the scale:
- first moment: a sign and 4 exponent bits, values 0 and 2^-17 ... 1.875;
- second moment: no sign and 5 exponent bits, values 0 and 2^-33 ... 1.875.
The codes 0 ... 7 are evenly spaced, like the subnormal numbers of a float. Rounding is stochastic, so that its mean is
exact. A positive second moment is never rounded to 0, as the update divides by it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._storage import SCALE_BLOCK

_SMALLEST_NORMAL = 1.17549435e-38
_EXPONENT_BITS = {"first": 4, "second": 5}


def _blocks(x: torch.Tensor) -> torch.Tensor:
    """Reshape [..., columns] to [..., blocks, 256], padded with zeros. A 0-d tensor is one row of one column."""
    x = x if x.dim() else x.view(1)
    missing = -x.shape[-1] % SCALE_BLOCK
    return F.pad(x, (0, missing)).view(*x.shape[:-1], (x.shape[-1] + missing) // SCALE_BLOCK, SCALE_BLOCK)


def _unblock(x: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return x.flatten(-2)[..., : shape[-1] if shape else 1].reshape(shape)


def block_scales(x: torch.Tensor) -> torch.Tensor:
    """Scale of each block: its largest magnitude over 1.875. NaN if the block holds a NaN; 0 if it would be subnormal.

    Args:
        x: float32 [..., columns].

    Returns:
        float32 [..., blocks].
    """
    largest = _blocks(x.abs()).view(torch.int32).amax(-1).view(torch.float32)
    scale = largest * 0.53333333
    return torch.where(scale < _SMALLEST_NORMAL, 0.0, scale)


def _encode_magnitude(x: torch.Tensor, random16: torch.Tensor, bits: int) -> torch.Tensor:
    top = 2**bits - 1
    smallest = 2.0 ** (1 - top)
    word = x.view(torch.int32).long() & 0xFFFFFFFF  # without a sign, which a NaN may have
    rounded = (word + (random16 << 4 | 8)) >> 20
    normal = rounded - ((127 - top) << 3)
    small = x < smallest
    below = torch.where(small, x, smallest)
    even = (below * 2.0 ** (top + 2) + (random16.float() + 0.5) * 2.0**-16).long()
    return torch.where(small, even, normal).clamp(max=top << 3 | 7)


def encode(x: torch.Tensor, scales: torch.Tensor, random16: torch.Tensor, moment: str) -> torch.Tensor:
    """Encode moments with stochastic rounding.

    Args:
        x: float32 [..., columns].
        scales: float32 [..., blocks], from `block_scales`.
        random16: int64, x's shape, values in [0, 65535].
        moment: "first" or "second".

    Returns:
        uint8, x's shape.
    """
    inverse = torch.where(scales == 0, 0.0, 1.0 / scales)
    in_units = _unblock(_blocks(x.abs()) * inverse[..., None], x.shape)
    code = _encode_magnitude(in_units, random16, _EXPONENT_BITS[moment])
    if moment == "first":
        return (code | (x.view(torch.int32) < 0).long() << 7).to(torch.uint8)
    return torch.where((code == 0) & (in_units > 0), 1, code).to(torch.uint8)


def decode(codes: torch.Tensor, scales: torch.Tensor, moment: str) -> torch.Tensor:
    """Decode moments stored by `encode`: float32, of the codes' shape."""
    bits = _EXPONENT_BITS[moment]
    top = 2**bits - 1
    code = codes.int()
    magnitude = code & 0x7F if moment == "first" else code
    normal = ((magnitude + ((127 - top) << 3)) << 20).view(torch.float32)
    units = torch.where(magnitude < 8, magnitude.float() * 2.0 ** -(top + 2), normal)
    x = _unblock(_blocks(units) * scales[..., None], codes.shape)
    return torch.where(code >= 128, -x, x) if moment == "first" else x
