"""Memory of bitsandbytes' linear layers: stand-ins in plain operators, and the bytes of quantised weights.

The stand-ins are needed as fake tensors do not run the real kernels, and PyTorch does not see their temporaries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_BLOCK, _OUTER_BLOCK = 64, 256  # QLoRA's double quantisation (arXiv 2305.14314)
_CODES = (16 + 256) * 4  # the two tables of values, float32


def quantized_bytes(weight: Tensor, method: str) -> int:
    """Bytes of a projection's weight [out, in] on the device: "nf4" with quantised scales, "int8", or "none".

    nf4: 4 bits per element, one byte per 64 elements for their scale, float32 per 256 scales and for their mean, and
    the two tables of values. int8: one byte per element and a float32 scale per row.
    """
    count = weight.numel()
    if method == "nf4":
        scales = -(-count // _BLOCK)
        return -(-count // 2) + scales + 4 * -(-scales // _OUTER_BLOCK) + 4 + _CODES
    return count + 4 * weight.shape[0] if method == "int8" else weight.nbytes


def is_quantizable(module: nn.Module) -> bool:
    """True for a linear layer without trained parameters. Callers pass the modules of decoder layers only."""
    return type(module) is nn.Linear and not any(p.requires_grad for p in module.parameters())


@contextmanager
def quantized_forward(modules: Iterable[nn.Module], method: str) -> Iterator[None]:
    """Context in which the quantisable ones of `modules` use as much memory as bitsandbytes' layers."""
    stand_in = {"nf4": _Nf4, "int8": _Int8}.get(method)
    changed = [module for module in modules if stand_in is not None and is_quantizable(module)]
    for module in changed:
        module.forward = lambda x, module=module: _with_bias(stand_in.apply(x, module.weight), module.bias)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y.add_(bias)


def _dequantized(weight: Tensor) -> Tensor:
    return weight.new_zeros(weight.shape)


class _Nf4(torch.autograd.Function):
    """Stand-in for bitsandbytes.autograd.MatMul4Bit: a full-precision copy of the weight during each product, nothing
    saved.

    Its fused kernel for few tokens makes no such copy. It is left out, so the plan is an upper bound.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        scales = weight.new_zeros(-(-weight.numel() // _BLOCK), dtype=torch.float32)
        ctx.weight = weight
        y = nn.functional.linear(x, _dequantized(weight))
        del scales
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ _dequantized(ctx.weight), None


class _Int8(torch.autograd.Function):
    """Stand-in for bitsandbytes.autograd.MatMul8bitLt without outliers.

    The forward holds the input in 8 bits and the product in int32 and float16. It saves the input for the backward,
    which makes a full-precision copy of the weight.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.input, ctx.weight = x, weight
        codes = x.to(torch.float16).to(torch.int8)
        products = [x.new_empty(*x.shape[:-1], len(weight), dtype=dtype) for dtype in (torch.int32, torch.float16)]
        y = nn.functional.linear(x, weight)
        del codes, products
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ _dequantized(ctx.weight), None
