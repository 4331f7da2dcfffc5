"""One call of masked_adamw_: its arguments, the scalars of the step, the checks, the table for kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ._checks import (
    Tensors,
    contiguous,
    dtype_is,
    layout,
    no_aliasing,
    one_device,
    plain,
    require,
    same_length,
    shape_is,
)
from ._storage import STORAGES, scale_shape

NAME = "masked_adamw_"
MASK_MODES = ("update", "gradient")
PULL_KINDS = ("l2", "l1")
Number = float | torch.Tensor


class Coefficients(NamedTuple):
    """The scalars of one step, computed once in double precision. The same struct is in
    csrc/include/cofitune/adamw_element.h.

    m <- m + one_minus_beta1 (g - m);  v <- beta2 v + one_minus_beta2 g g;
    p <- p - mask (decay p + step_size m / (denominator_scale sqrt(v) + eps) + min(1, lr pull) (p - anchor))

    With an "l1" pull the last term is left out, and p <- anchor + soft(p - anchor, mask lr pull) follows.
    """

    one_minus_beta1: Number
    beta2: Number
    one_minus_beta2: Number
    step_size: Number
    denominator_scale: Number
    eps: Number
    decay: Number
    lr: Number


def coefficients(
    lr: Number, beta1: float, beta2: float, eps: float, weight_decay: float, step: Number
) -> Coefficients:
    """Compute the scalars of AdamW with bias correction and decoupled decay (Loshchilov and Hutter, ICLR 2019).

    lr and step are numbers, or float64 tensors on a device; tensors are not copied to the host.
    """
    return Coefficients(
        one_minus_beta1=1 - beta1,
        beta2=beta2,
        one_minus_beta2=1 - beta2,
        step_size=lr / (1 - beta1**step),
        denominator_scale=(1 - beta2**step) ** -0.5,
        eps=eps,
        decay=lr * weight_decay,
        lr=lr,
    )


class AdamwCall(NamedTuple):
    """One checked call, as the backends receive it.

    All lists have one length; remainders and scales are empty in storages without them. lr is float64 and step int64,
    0-d tensors on the host or on the tensors' device.
    """

    params: Tensors
    grads: Tensors
    exp_avgs: Tensors
    exp_avg_sqs: Tensors
    remainders: Tensors
    scales: Tensors
    masks: Sequence[torch.Tensor | None]
    anchors: Sequence[torch.Tensor | None]
    pulls: Sequence[torch.Tensor | None]
    clip: torch.Tensor | None
    lr: torch.Tensor
    step: torch.Tensor
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    mask_mode: str
    pull_kind: str
    storage: str
    seed: int
    offsets: Sequence[int]
    zero_grad: bool
    prepared: tuple[list[int], ...] | None = None  # the `table` of a call with other gradients and scalars

    @property
    def pull_code(self) -> int:
        """The number of the kind of pull in csrc/include/cofitune/adamw_element.h, where 0 is none."""
        return 1 + PULL_KINDS.index(self.pull_kind)

    def coefficients(self) -> Coefficients:
        """The scalars on the host. Waits for the device if lr or step lie there."""
        step = self.step.item()
        require(step >= 1, f"{NAME}: step is counted from 1, not {step}.")
        return coefficients(self.lr.item(), self.beta1, self.beta2, self.eps, self.weight_decay, step)

    def scalars(self) -> torch.Tensor:
        """The scalars for GPU kernels, int64 [5] on the tensors' device: eight float32 coefficients, then the step.

        There is no host sync. With lr and step on the device a CUDA graph can capture this.
        """
        device = self.params[0].device
        if self.lr.device == self.step.device == torch.device("cpu"):
            host = torch.tensor(self.coefficients(), dtype=torch.float32).view(torch.int64)
            return torch.cat([host, self.step[None]]).to(device, non_blocking=True)
        lr, step = self.lr.to(device), self.step.to(device)
        c = coefficients(lr, self.beta1, self.beta2, self.eps, self.weight_decay, step.double())
        # A number becomes a device tensor by a fill, which a CUDA graph can capture, unlike a copy from the host.
        values = torch.stack([x if isinstance(x, torch.Tensor) else torch.full_like(lr, x) for x in c])
        return torch.cat([values.float().view(torch.int64), step[None]])


def _addresses(tensors: Sequence[torch.Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def table(call: AdamwCall) -> tuple[list[int], ...]:
    """The tensors as lists of numbers for the native kernels; csrc/include/cofitune/adamw_tensor.h reads them.

    First nine lists of addresses: p, g, m, v, remainder, scales, mask, anchor, pull; an empty list means that all are
    null. Then one list with five numbers per tensor: rows, columns, mask layout, pull layout, and 1 if the mask is
    uint8. Then the random offsets.
    """
    if call.prepared is not None:
        params, _, *rest = call.prepared
        return (params, _addresses(call.grads), *rest)
    rows = []
    for p, mask, pull in zip(call.params, call.masks, call.pulls, strict=True):
        columns = p.shape[-1] if p.dim() else 1
        rows += [p.numel() // max(columns, 1), columns, layout(NAME, "mask", mask, p.shape),
                 layout(NAME, "pull", pull, p.shape), mask is not None and mask.dtype == torch.uint8]
    lists = (call.params, call.grads, call.exp_avgs, call.exp_avg_sqs, call.remainders, call.scales, call.masks,
             call.anchors, call.pulls)
    return (*map(_addresses, lists), rows, list(call.offsets))


def _check_range(label: str, factors: torch.Tensor | None, highest: float) -> None:
    """Refuse factors outside [0, highest]. Factors on a device are not looked at, as that would be a host sync."""
    if factors is None or factors.device.type != "cpu" or not factors.is_floating_point() or not factors.numel():
        return
    low, high = factors.aminmax()
    require(bool(0 <= low <= high <= highest),
            f"{NAME}: {label} must lie in [0, {highest:g}], but its values reach from {float(low):g} to "
            f"{float(high):g}.")


def check(call: AdamwCall) -> None:
    """Refuse arguments that do not fit. Values are checked only on the host, so that there is no host sync."""
    require(call.mask_mode in MASK_MODES, f"{NAME}: mask_mode must be 'update' or 'gradient', not {call.mask_mode!r}.")
    require(call.pull_kind in PULL_KINDS, f"{NAME}: pull_kind must be 'l2' or 'l1', not {call.pull_kind!r}.")
    require(call.storage in STORAGES,
            f"{NAME}: storage must be one of {', '.join(STORAGES)}, not {call.storage!r}.")
    form = STORAGES[call.storage]
    written = {"params": call.params, "grads": call.grads, "exp_avgs": call.exp_avgs, "exp_avg_sqs": call.exp_avg_sqs}
    extra = (("remainders", call.remainders, form.remainder), ("scales", call.scales, form.scaled))
    for name, tensors, wanted in extra:
        require(wanted or not tensors, f"{NAME}: storage {call.storage!r} has no {name}; leave them out.")
        require(not wanted or bool(tensors) or not call.params, f"{NAME}: storage {call.storage!r} needs {name}.")
        if wanted:
            written[name] = tensors
    read = {"masks": call.masks, "anchors": call.anchors, "pulls": call.pulls}
    same_length(NAME, **written, **read, offsets=call.offsets)
    one_device(NAME, **written, **read, clip=[call.clip])
    require(-(2**63) <= call.seed < 2**63, f"{NAME}: seed must fit in 64 bits with a sign, but it is {call.seed}.")
    for index, offset in enumerate(call.offsets):
        require(offset >= 0, f"{NAME}: offsets[{index}] must not be negative, but it is {offset}.")
    dtypes = {"params": form.weight, "grads": form.weight, "exp_avgs": form.moment, "exp_avg_sqs": form.moment,
              "remainders": torch.int16, "scales": torch.float32}
    for index, p in enumerate(call.params):
        for name, tensors in written.items():
            tensor, label = tensors[index], f"{name}[{index}]"
            require(
                tensor.dtype == dtypes[name],
                f"{NAME}: with storage {call.storage!r} {label} must be {plain(dtypes[name])}, but it is "
                f"{plain(tensor.dtype)}.",
            )
            shape_is(NAME, label, tensor, scale_shape(p.shape) if name == "scales" else p.shape)
            contiguous(NAME, label, tensor)
        mask, anchor, pull = call.masks[index], call.anchors[index], call.pulls[index]
        require((anchor is None) == (pull is None),
                f"{NAME}: anchors[{index}] and pulls[{index}] belong together; give both or neither.")
        for name, factors, *allowed in (("masks", mask, torch.float32, torch.uint8), ("pulls", pull, torch.float32)):
            if factors is not None:
                dtype_is(NAME, f"{name}[{index}]", factors, *allowed)
                layout(NAME, f"{name}[{index}]", factors, p.shape)
                contiguous(NAME, f"{name}[{index}]", factors)
        if anchor is not None:
            dtype_is(NAME, f"anchors[{index}]", anchor, form.weight)
            shape_is(NAME, f"anchors[{index}]", anchor, p.shape)
            contiguous(NAME, f"anchors[{index}]", anchor)
    if call.clip is not None:
        dtype_is(NAME, "clip", call.clip, torch.float32)
        shape_is(NAME, "clip", call.clip, [2])
        contiguous(NAME, "clip", call.clip)
    if not torch.compiler.is_compiling():
        no_aliasing(NAME, [(f"{name}[{i}]", t) for name, tensors in written.items() for i, t in enumerate(tensors)],
                    [(f"{name}[{i}]", t) for name, tensors in read.items() for i, t in enumerate(tensors)
                     if t is not None])
        for index, (mask, pull) in enumerate(zip(call.masks, call.pulls, strict=True)):
            _check_range(f"masks[{index}]", mask, 1.0)
            _check_range(f"pulls[{index}]", pull, math.inf)
