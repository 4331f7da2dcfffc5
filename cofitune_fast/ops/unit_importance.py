"""unit_importance_: add |sum over tokens and columns of y dL/dy| per sample and unit to a buffer of scores."""

from __future__ import annotations

import torch

from . import native, triton
from ._checks import contiguous, dtype_is, no_aliasing, one_device, require, shape_is
from ._registry import operation

_NAME = "unit_importance_"


def reference(
    scores: torch.Tensor, y: torch.Tensor, grad_y: torch.Tensor, attention_mask: torch.Tensor | None, unit_size: int,
    passes: int,
) -> None:
    """Eager reference: the gradient of a virtual gate of ones on each unit, with its absolute value per sample."""
    product = y.float() * grad_y.float()
    if attention_mask is not None:
        product = product.masked_fill(~attention_mask[:, :, None], 0)  # not a product: padding may hold NaN
    batch, tokens, width = y.shape
    gate_gradients = product.view(batch // passes, passes, tokens, width // unit_size, unit_size).sum((1, 2, 4))
    scores += gate_gradients.abs().sum(0)


def _native(
    scores: torch.Tensor, y: torch.Tensor, grad_y: torch.Tensor, attention_mask: torch.Tensor | None, unit_size: int,
    passes: int,
) -> None:
    native.library().unit_importance(
        scores.data_ptr(),
        y.data_ptr(),
        grad_y.data_ptr(),
        0 if attention_mask is None else attention_mask.data_ptr(),
        *y.shape,
        unit_size,
        passes,
        y.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )


def _triton(*arguments: object) -> None:
    triton.kernel("unit_importance").unit_importance(*arguments)


op = operation(_NAME, reference)
op.add("cpu", _native, ("cpu",), native.load_error)
op.lack("cuda", "this op has no CUDA C++ kernel; on GPUs it is Triton's")
op.add("triton", _triton, triton.devices(), triton.load_error)


@torch.library.custom_op(
    "cofitune_fast::unit_importance_",
    mutates_args=("scores",),
    schema="(Tensor(a!) scores, Tensor y, Tensor grad_y, Tensor? attention_mask, int unit_size, int passes, "
    "str backend) -> ()",
)
def _unit_importance(scores, y, grad_y, attention_mask, unit_size, passes, backend):
    op.run(backend, y.device, scores, y, grad_y, attention_mask, unit_size, passes)


@_unit_importance.register_fake
def _(scores, y, grad_y, attention_mask, unit_size, passes, backend):
    return None


@torch.no_grad()
def unit_importance_(
    scores: torch.Tensor, y: torch.Tensor, grad_y: torch.Tensor, *, attention_mask: torch.Tensor | None = None,
    unit_size: int = 1, passes: int = 1, per: str = "sample", backend: str = "auto",
) -> torch.Tensor:
    """Add to scores[u], in place, the sum over samples of |sum over tokens t and columns d of y[t, d] grad_y[t, d]|.

    The columns d are those of unit u. The inner sum is the gradient of a virtual gate of ones on the unit's output: the
    importance of arXiv 2404.10306, with the absolute value per sample as in its formula.

    Products are formed in float32. On CPUs eight products are summed in float32, and these sums in float64, in an order
    that depends neither on the number of threads nor on the instruction set. The error of a score is below 3e-7 of the
    sum of the magnitudes of all products, plus its own rounding to float32.

    Args:
        scores: float32 [D / unit_size], contiguous.
        y: a module's output, float32 or bfloat16 [B, T, D].
        grad_y: dL/dy, as y.
        attention_mask: [B, T], 0 at tokens to ignore; their values may be NaN.
        unit_size: columns per unit: 1 for a neuron, head_dim for a head.
        passes: consecutive rows of the batch that are one sample; their sums are added before the absolute value.
        per: "sample", or "batch": the absolute value of the whole batch's sum, as in the authors' code. Samples of
            opposite sign cancel in it.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        `scores`.

    Raises:
        CofituneError: an argument does not fit, or the backend asked for cannot run.
    """
    require(y.dim() == 3, f"{_NAME}: y must have the three dimensions [B, T, D], but its shape is {list(y.shape)}.")
    batch, _, width = y.shape
    dtype_is(_NAME, "y", y, torch.float32, torch.bfloat16)
    dtype_is(_NAME, "grad_y", grad_y, y.dtype)
    dtype_is(_NAME, "scores", scores, torch.float32)
    shape_is(_NAME, "grad_y", grad_y, y.shape)
    require(unit_size >= 1 and width % unit_size == 0,
            f"{_NAME}: unit_size {unit_size} does not divide the {width} columns of y.")
    require(passes >= 1 and batch % passes == 0, f"{_NAME}: passes {passes} does not divide the batch of {batch}.")
    require(per in ("sample", "batch"), f"{_NAME}: per must be 'sample' or 'batch', not {per!r}.")
    shape_is(_NAME, "scores", scores, [width // unit_size])
    contiguous(_NAME, "scores", scores)
    one_device(_NAME, scores=[scores], y=[y], grad_y=[grad_y], attention_mask=[attention_mask])
    if not torch.compiler.is_compiling():
        no_aliasing(_NAME, [("scores", scores)], [("y", y), ("grad_y", grad_y)])
    if attention_mask is not None:
        shape_is(_NAME, "attention_mask", attention_mask, y.shape[:2])
        attention_mask = (attention_mask != 0).contiguous()
    if per == "batch":
        passes = max(1, batch)  # all rows are one sample
    _unit_importance(scores, y.contiguous(), grad_y.contiguous(), attention_mask, unit_size, passes, backend)
    return scores
