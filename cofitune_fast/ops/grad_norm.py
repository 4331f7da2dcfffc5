"""grad_norm: the global L2 norm of a list of gradients, the clip factor and the skip flag, without a host sync."""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import native
from ._checks import Tensors, contiguous, dtype_is, one_device, require
from ._registry import operation

_NAME = "grad_norm"


class GradNorm(NamedTuple):
    """norm: float32, 0-d. clip: float32 [2]: the factor min(1, max_norm / (norm + 1e-6)), and 1.0 where the norm is not
    finite (the factor is then 0), else 0.0. Both lie on the gradients' device."""

    norm: torch.Tensor
    clip: torch.Tensor


def sum_of_squares_reference(grads: Tensors) -> torch.Tensor:
    """float64 0-d: every element squared and summed in float64, as float32 squares overflow from 1.8e19 on."""
    if not grads:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack([g.double().square().sum() for g in grads]).sum()


def _sum_of_squares_native(grads: Tensors) -> torch.Tensor:
    total = torch.empty((), dtype=torch.float64)
    native.library().sum_of_squares(
        [g.data_ptr() for g in grads],
        [g.numel() for g in grads],
        [g.dtype == torch.bfloat16 for g in grads],
        total.data_ptr(),
        torch.get_num_threads(),
    )
    return total


_op = operation(_NAME, sum_of_squares_reference)
_op.add("cpu", _sum_of_squares_native, ("cpu",), native.load_error)
_op.lack("cuda", "there is no CUDA kernel for it yet in this version")
_op.lack("triton", "there is no Triton kernel for it yet in this version")


@torch.library.custom_op(
    "cofitune_fast::grad_norm",
    mutates_args=(),
    schema="(Tensor[] grads, float? max_norm, str backend) -> (Tensor, Tensor)",
)
def _grad_norm(grads, max_norm, backend):
    device = grads[0].device if grads else torch.device("cpu")
    norm = _op.run(backend, device, grads).sqrt().float()
    finite = torch.isfinite(norm)
    factor = torch.ones_like(norm) if max_norm is None else (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return norm, torch.stack([torch.where(finite, factor, 0.0), (~finite).float()])


@_grad_norm.register_fake
def _(grads, max_norm, backend):
    device = grads[0].device if grads else torch.device("cpu")
    return torch.empty((), device=device), torch.empty(2, device=device)


@torch.no_grad()
def grad_norm(grads: Tensors, max_norm: float | None = None, *, backend: str = "auto") -> GradNorm:
    """The L2 norm over all elements of all gradients, and what `masked_adamw_` needs to clip by it.

    The result is a fixed function of the gradients: it does not depend on the number of threads.

    Args:
        grads: contiguous float32 or bfloat16 tensors of any shapes on one device; may be empty (norm 0).
        max_norm: norm above which the gradients are scaled down as by torch.nn.utils.clip_grad_norm_; None: never.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        GradNorm(norm, clip).

    Raises:
        CofituneError: an argument does not fit, or the backend asked for cannot run.
    """
    one_device(_NAME, grads=grads)
    for index, grad in enumerate(grads):
        dtype_is(_NAME, f"grads[{index}]", grad, torch.float32, torch.bfloat16)
        contiguous(_NAME, f"grads[{index}]", grad)
    require(max_norm is None or max_norm > 0, f"{_NAME}: max_norm must be positive or None, not {max_norm}.")
    return GradNorm(*_grad_norm(list(grads), None if max_norm is None else float(max_norm), backend))
