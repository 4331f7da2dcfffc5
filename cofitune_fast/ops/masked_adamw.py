"""masked_adamw_: one AdamW step of a list of tensors, clipped, softly masked, rounded once, in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from . import native
from ._checks import Tensors, contiguous, dtype_is, mask_strides, one_device, require, same_length, shape_is
from ._registry import operation
from .rounding import stochastic_round

MASK_MODES = ("update", "gradient")
STORAGES = {"fp32": torch.float32, "bf16_sr": torch.bfloat16}
_NAME = "masked_adamw_"


class Coefficients(NamedTuple):
    """The scalars of one step, computed in double precision once; csrc/include/cofitune/adamw_element.h has the same.

    m <- m + one_minus_beta1 (g - m);  v <- beta2 v + one_minus_beta2 g g;
    p <- p - mask (decay p + step_size m / (denominator_scale sqrt(v) + eps))
    """

    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    step_size: float
    denominator_scale: float
    eps: float
    decay: float


def coefficients(lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int) -> Coefficients:
    """Bias correction and decoupled decay of AdamW (Loshchilov and Hutter, ICLR 2019)."""
    return Coefficients(
        one_minus_beta1=1 - beta1,
        beta2=beta2,
        one_minus_beta2=1 - beta2,
        step_size=lr / (1 - beta1**step),
        denominator_scale=1 / math.sqrt(1 - beta2**step),
        eps=eps,
        decay=lr * weight_decay,
    )


def reference(
    params: Tensors, grads: Tensors, exp_avgs: Tensors, exp_avg_sqs: Tensors, masks: Sequence[torch.Tensor | None],
    clip: torch.Tensor | None, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int,
    mask_mode: str, storage: str, seed: int, offsets: Sequence[int], zero_grad: bool,
) -> None:
    """The specification, tensor by tensor; the native kernels give the same bits."""
    c = coefficients(lr, beta1, beta2, eps, weight_decay, step)
    for p, grad, exp_avg, exp_avg_sq, mask, offset in zip(
        params, grads, exp_avgs, exp_avg_sqs, masks, offsets, strict=True
    ):
        x, g = p.float(), grad.float()
        live = torch.ones((), dtype=torch.bool, device=p.device)
        if clip is not None:
            g = g * clip[0]
            live = clip[1] == 0
        if mask is not None and mask_mode == "gradient":
            g = g * mask
        m = exp_avg + c.one_minus_beta1 * (g - exp_avg)
        v = c.beta2 * exp_avg_sq + c.one_minus_beta2 * g * g
        root = v.double().sqrt().float()  # correctly rounded; torch's float32 root on CPUs may be off by one bit
        change = c.decay * x + c.step_size * m / (root * c.denominator_scale + c.eps)
        if mask is not None and mask_mode == "update":
            change = mask * change
            live = live & (mask != 0)
        new = x - change
        if storage == "bf16_sr":
            new = stochastic_round(new, seed=seed, step=step, offset=offset)
        p.copy_(torch.where(live, new, p))
        exp_avg.copy_(torch.where(live, m, exp_avg))
        exp_avg_sq.copy_(torch.where(live, v, exp_avg_sq))
        if zero_grad:
            grad.zero_()


def _native(
    params: Tensors, grads: Tensors, exp_avgs: Tensors, exp_avg_sqs: Tensors, masks: Sequence[torch.Tensor | None],
    clip: torch.Tensor | None, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int,
    mask_mode: str, storage: str, seed: int, offsets: Sequence[int], zero_grad: bool,
) -> None:
    strides = [(0, 0) if mask is None else mask_strides(_NAME, "mask", mask, p.shape)
               for p, mask in zip(params, masks, strict=True)]
    native.library().masked_adamw(
        [p.data_ptr() for p in params],
        [g.data_ptr() for g in grads],
        [m.data_ptr() for m in exp_avgs],
        [v.data_ptr() for v in exp_avg_sqs],
        [0 if mask is None else mask.data_ptr() for mask in masks],
        [p.numel() for p in params],
        [p.shape[-1] if p.dim() else 1 for p in params],
        [row for row, _ in strides],
        [column for _, column in strides],
        list(offsets),
        list(coefficients(lr, beta1, beta2, eps, weight_decay, step)),
        0 if clip is None else clip.data_ptr(),
        mask_mode == "gradient",
        storage == "bf16_sr",
        zero_grad,
        seed,
        step,
        torch.get_num_threads(),
    )


_op = operation(_NAME, reference)
_op.add("cpu", _native, ("cpu",), native.load_error)
_op.lack("cuda", "there is no CUDA kernel for it yet in this version")
_op.lack("triton", "there is no Triton kernel for it yet in this version")


@torch.library.custom_op(
    "cofitune_fast::masked_adamw_",
    mutates_args=("params", "grads", "exp_avgs", "exp_avg_sqs"),
    schema="(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
    "Tensor?[] masks, Tensor? clip, float lr, float beta1, float beta2, float eps, float weight_decay, int step, "
    "str mask_mode, str storage, int seed, int[] offsets, bool zero_grad, str backend) -> ()",
)
def _masked_adamw(
    params, grads, exp_avgs, exp_avg_sqs, masks, clip, lr, beta1, beta2, eps, weight_decay, step, mask_mode, storage,
    seed, offsets, zero_grad, backend,
):
    device = params[0].device if params else torch.device("cpu")
    _op.run(backend, device, params, grads, exp_avgs, exp_avg_sqs, masks, clip, lr, beta1, beta2, eps, weight_decay,
            step, mask_mode, storage, seed, offsets, zero_grad)


@_masked_adamw.register_fake
def _(params, grads, exp_avgs, exp_avg_sqs, masks, clip, lr, beta1, beta2, eps, weight_decay, step, mask_mode, storage,
      seed, offsets, zero_grad, backend):
    return None


def _check(params, grads, exp_avgs, exp_avg_sqs, masks, clip, mask_mode, storage, offsets) -> None:
    same_length(_NAME, params=params, grads=grads, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs, masks=masks,
                offsets=offsets)
    require(mask_mode in MASK_MODES, f"{_NAME}: mask_mode must be 'update' or 'gradient', not {mask_mode!r}.")
    require(storage in STORAGES, f"{_NAME}: storage must be 'fp32' or 'bf16_sr', not {storage!r}.")
    one_device(_NAME, params=params, grads=grads, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs, masks=masks, clip=[clip])
    for index, p in enumerate(params):
        lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
        for name, tensors in lists.items():
            tensor, label = tensors[index], f"{name}[{index}]"
            dtype = STORAGES[storage] if name in ("params", "grads") else torch.float32
            require(
                tensor.dtype == dtype,
                f"{_NAME}: with storage {storage!r} {label} must be {str(dtype).removeprefix('torch.')}, but it is "
                f"{str(tensor.dtype).removeprefix('torch.')}.",
            )
            shape_is(_NAME, label, tensor, p.shape)
            contiguous(_NAME, label, tensor)
        if masks[index] is not None:
            dtype_is(_NAME, f"masks[{index}]", masks[index], torch.float32)
            mask_strides(_NAME, f"masks[{index}]", masks[index], p.shape)
            contiguous(_NAME, f"masks[{index}]", masks[index])
    if clip is not None:
        dtype_is(_NAME, "clip", clip, torch.float32)
        shape_is(_NAME, "clip", clip, [2])
        contiguous(_NAME, "clip", clip)


@torch.no_grad()
def masked_adamw_(
    params: Tensors, grads: Tensors, exp_avgs: Tensors, exp_avg_sqs: Tensors,
    masks: Sequence[torch.Tensor | None] | None = None, *, lr: float, betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8, weight_decay: float = 0.1, step: int, clip: torch.Tensor | None = None,
    mask_mode: str = "update", storage: str = "fp32", seed: int = 0, offsets: Sequence[int] | None = None,
    zero_grad: bool = False, backend: str = "auto",
) -> None:
    """One AdamW step in place: clip, moments, bias correction, decoupled decay, soft mask, one rounding.

    With g the gradient times clip[0], and everything computed in float32:

        m <- m + (1 - b1) (g - m);   v <- b2 v + (1 - b2) g^2
        u  = lr wd p + lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    `update` mode: p <- p - mask u. The moments see the unmasked g. Where the mask is exactly 0, the parameter and both
    moments keep their bytes, decay and rounding included; a row with factor 0 is not even read.
    `gradient` mode (CoFiTune, arXiv 2404.10306): g <- mask g before the moments, then p <- p - u; decay is not masked.
    Adam divides out a constant factor of its gradient, so that this mode hardly damps; see docs.
    mask None and mask 1 give the same bits. With clip[1] != 0 nothing changes (but `zero_grad` is still obeyed).

    Args:
        params: contiguous, float32 (storage "fp32") or bfloat16 ("bf16_sr": rounded stochastically); any shape.
        grads: as params; set to zero in the same pass if `zero_grad`.
        exp_avgs, exp_avg_sqs: the moments m and v, float32, as params in shape.
        masks: per tensor None or float32 factors, [out, 1], [1, in] or the parameter's shape.
        step: t, counted from 1.
        clip: float32 [2] on the same device, as made by `grad_norm`: factor of the gradient, and the skip flag.
        seed, offsets: the random number of element i of tensor k is a function of (seed, step, offsets[k] + i) alone,
            on every backend; by default the tensors' elements are counted through.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Raises:
        CofituneError: an argument does not fit, or the backend asked for cannot run.
    """
    masks = [None] * len(params) if masks is None else list(masks)
    if offsets is None:
        offsets = [0] * len(params)
        for index in range(1, len(params)):
            offsets[index] = offsets[index - 1] + params[index - 1].numel()
    _check(params, grads, exp_avgs, exp_avg_sqs, masks, clip, mask_mode, storage, offsets)
    require(0 <= betas[0] < 1 and 0 <= betas[1] < 1, f"{_NAME}: betas must lie in [0, 1), not {tuple(betas)}.")
    require(step >= 1, f"{_NAME}: step is counted from 1, not {step}.")
    require(lr >= 0 and eps >= 0 and weight_decay >= 0,
            f"{_NAME}: lr, eps and weight_decay must not be negative, but they are {lr}, {eps} and {weight_decay}.")
    _masked_adamw(list(params), list(grads), list(exp_avgs), list(exp_avg_sqs), masks, clip, float(lr),
                  float(betas[0]), float(betas[1]), float(eps), float(weight_decay), step, mask_mode, storage, seed,
                  list(offsets), zero_grad, backend)
