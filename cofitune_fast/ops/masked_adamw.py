"""masked_adamw_: one AdamW step of a list of tensors, in place: clipped, softly masked, rounded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import cuda, native, triton
from ._adamw_call import NAME, AdamwCall, Number, check, table
from ._checks import Tensors, require
from ._registry import operation
from ._storage import STORAGES
from .eight_bit import block_scales, decode, encode
from .rounding import join, random16, round_by, split


def reference(call: AdamwCall) -> None:
    """Eager reference, tensor by tensor. It is the specification: the native kernels give the same bits."""
    c, form = call.coefficients(), STORAGES[call.storage]
    for index, (p, grad, exp_avg, exp_avg_sq, mask, anchor, pull, offset) in enumerate(
        zip(call.params, call.grads, call.exp_avgs, call.exp_avg_sqs, call.masks, call.anchors, call.pulls,
            call.offsets, strict=True)
    ):
        stored = [p, exp_avg, exp_avg_sq]
        if form.remainder:
            stored.append(call.remainders[index])
        if form.scaled:
            stored.append(call.scales[index])
        x, m, v = _load(call.storage, *stored)
        g = grad.float()
        damped = mask is not None and call.mask_mode == "update"
        live = torch.ones((), dtype=torch.bool, device=p.device)
        if call.clip is not None:
            g = g * call.clip[0]
            live = call.clip[1] == 0
        if mask is not None and mask.dtype == torch.uint8:
            mask = mask.float() * (1 / 255)
        if mask is not None and not damped:
            g = g * mask
        m = m + c.one_minus_beta1 * (g - m)
        v = c.beta2 * v + c.one_minus_beta2 * g * g
        root = v.double().sqrt().float()  # correctly rounded; torch's float32 root on CPUs may be off by one bit
        change = c.decay * x + c.step_size * m / (root * c.denominator_scale + c.eps)
        if anchor is not None:
            anchor, pull = anchor.float(), c.lr * pull
            if call.pull_kind == "l2":
                change = change + pull.clamp(max=1.0) * (x - anchor)
        if damped:
            change = mask * change
            live = live & (mask != 0)
        x = x - change
        if anchor is not None and call.pull_kind == "l1":
            threshold = mask * pull if damped else pull
            away = x - anchor
            nearer = torch.where(away < 0, x + threshold, x - threshold)
            x = torch.where(away.abs() <= threshold, anchor, nearer)
        random = random16(p.shape, seed=call.seed, step=int(call.step), offset=offset, device=p.device)
        if form.scaled:
            scale = _block_scales(m, v, live, stored.pop())
            new = [round_by(x, random.weight), encode(m, scale[..., 0], random.first, "first"),
                   encode(v, scale[..., 1], random.second, "second")]
        elif form.remainder:
            high, low = split(x)
            new = [high, m, v, low]
        elif call.storage == "fp32":
            new = [x, m, v]
        else:
            new = [round_by(x, random.weight), m, v]
            if form.moment == torch.bfloat16:
                new[1:] = round_by(m, random.first), round_by(v, random.second)
        for old, value in zip(stored, new, strict=True):
            old.copy_(torch.where(live, value, old))
        if call.zero_grad:
            grad.zero_()


def _load(
    storage: str, p: torch.Tensor, m: torch.Tensor, v: torch.Tensor, *extra: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Read weight and moments as float32."""
    if storage == "bf16_split":
        return join(p, extra[0]), m, v
    if storage == "int8":
        return p.float(), decode(m, extra[0][..., 0], "first"), decode(v, extra[0][..., 1], "second")
    return p.float(), m.float(), v.float()


def _block_scales(m: torch.Tensor, v: torch.Tensor, live: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Set each block's scale from the elements that are updated. A block without any keeps its scale."""
    live = live.expand(m.shape)
    fresh = torch.stack([block_scales(torch.where(live, x, 0.0)) for x in (m, v)], -1)
    moves = block_scales(live.float()) > 0
    return scale.copy_(torch.where(moves[..., None], fresh, scale))


def _native(call: AdamwCall) -> None:
    native.library().masked_adamw(
        *table(call), list(call.coefficients()), 0 if call.clip is None else call.clip.data_ptr(),
        call.mask_mode == "gradient", call.pull_code, STORAGES[call.storage].code, call.zero_grad, call.seed,
        int(call.step), torch.get_num_threads(),
    )


def _cuda(call: AdamwCall) -> None:
    if not call.params:
        return
    scalars = call.scalars()
    cuda.library().masked_adamw(
        *table(call), scalars.data_ptr(), 0 if call.clip is None else call.clip.data_ptr(),
        call.mask_mode == "gradient", call.pull_code, STORAGES[call.storage].code, call.zero_grad, call.seed,
        *cuda.place(call.params[0].device),
    )


def _triton(call: AdamwCall) -> None:
    if not call.params:
        return
    *_, matrices, offsets = table(call)
    triton.kernel("masked_adamw").masked_adamw(
        call.params, call.grads, call.exp_avgs, call.exp_avg_sqs, call.remainders, call.scales, call.masks,
        call.anchors, call.pulls, matrices, offsets, call.clip, call.scalars(), storage=STORAGES[call.storage].code,
        pull_kind=call.pull_code, gradient_mode=call.mask_mode == "gradient", zero_grad=call.zero_grad, seed=call.seed,
    )


op = operation(NAME, reference)
op.add("cpu", _native, ("cpu",), native.load_error)
op.add("cuda", _cuda, ("cuda",), cuda.load_error)
op.add("triton", _triton, triton.devices(), triton.load_error)


@torch.library.custom_op(
    "cofitune_fast::masked_adamw_",
    mutates_args=("params", "grads", "exp_avgs", "exp_avg_sqs", "remainders", "scales"),
    schema="(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
    "Tensor(e!)[] remainders, Tensor(f!)[] scales, Tensor?[] masks, Tensor?[] anchors, Tensor?[] pulls, Tensor? clip, "
    "Tensor lr, Tensor step, float beta1, float beta2, float eps, float weight_decay, str mask_mode, str pull_kind, "
    "str storage, int seed, int[] offsets, bool zero_grad, str backend) -> ()",
)
def _masked_adamw(*arguments):
    *fields, backend = arguments
    call = AdamwCall(*fields)
    op.run(backend, call.params[0].device if call.params else torch.device("cpu"), call)


@_masked_adamw.register_fake
def _(*arguments):
    return None


def run_checked(call: AdamwCall, backend: str) -> None:
    """Run a checked call with little overhead: torch.library is bypassed unless torch.compile is tracing."""
    if torch.compiler.is_compiling():
        _masked_adamw(*call[:-1], backend)
        return
    op.run(backend, call.params[0].device, call)
    for written in (call.params, call.grads, call.exp_avgs, call.exp_avg_sqs, call.remainders, call.scales):
        torch.autograd.graph.increment_version(written)


def _scalar(name: str, value: Number, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        return torch.tensor(value, dtype=dtype)
    require(value.numel() == 1 and value.device in (device, torch.device("cpu")),
            f"{NAME}: {name} must be a number or a tensor of one element on the CPU or on {device}, but it has "
            f"{value.numel()} elements on {value.device}.")
    return value.detach().reshape(()).to(dtype)


@torch.no_grad()
def masked_adamw_(
    params: Tensors, grads: Tensors, exp_avgs: Tensors, exp_avg_sqs: Tensors,
    masks: Sequence[torch.Tensor | None] | None = None, *, remainders: Tensors = (), scales: Tensors = (),
    anchors: Sequence[torch.Tensor | None] | None = None, pulls: Sequence[torch.Tensor | None] | None = None,
    lr: float | torch.Tensor, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.1,
    step: int | torch.Tensor, clip: torch.Tensor | None = None, mask_mode: str = "update", pull_kind: str = "l2",
    storage: str = "fp32", seed: int = 0, offsets: Sequence[int] | None = None, zero_grad: bool = False,
    backend: str = "auto",
) -> None:
    """One AdamW step in place: clip, moments, bias correction, decoupled decay and pull, soft mask, one rounding.

    With g the gradient times clip[0], in float32:

        m <- m + (1 - b1) (g - m);   v <- b2 v + (1 - b2) g^2
        u  = lr wd p + lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    Mask mode "update": p <- p - mask u. The moments are updated by the unmasked g. Where the mask is exactly 0, the
    parameter and both moments keep their bytes: no decay, no pull, no rounding. A row with factor 0 is not read.
    Mask mode "gradient" (CoFiTune, arXiv 2404.10306): g <- mask g before the moments, then p <- p - u. Decay and pull
    are not masked. Adam divides out a constant factor of its gradient, so this mode hardly damps; see docs.
    mask None and mask 1 give the same bits. With clip[1] != 0 nothing changes, but `zero_grad` is still obeyed.

    An "l2" pull adds min(1, lr pull) (p - anchor) to u. An "l1" pull is the proximal step of lr pull |p - anchor| after
    the update of p: p moves toward the anchor by lr pull (in mode "update" times the mask), or lands on it. In mode
    "update" the mask damps pull and gradient alike: it changes how fast a unit moves, not where it comes to rest.

    Storage formats, with the bytes of p, g, m and v that are read and written per parameter and step:

        fp32        28   all float32
        bf16_split  26   p bfloat16 and a 16-bit remainder that together are a float32 weight; moments float32
        bf16_sr     22   p bfloat16, stochastically rounded; moments float32
        bf16        14   p and both moments bfloat16, stochastically rounded
        int8        10   as bf16, but moments in 8 bits with a float32 scale per 256 neighbors of a row (eight_bit.py)

    Args:
        params, grads: contiguous, float32 in storage "fp32", else bfloat16. zero_grad also sets grads to zero.
        exp_avgs, exp_avg_sqs: the moments m and v, of the params' shape: float32; bfloat16 in storage "bf16"; uint8
            codes in "int8".
        masks: per tensor None or factors in [0, 1] of shape [out, 1], [1, in] or the parameter's: float32, or uint8 in
            units of 1/255. On a GPU the values are not checked.
        remainders: in storage "bf16_split" int16, of the params' shape; zero makes the float32 weight equal p.
        scales: in storage "int8" float32 [..., ceil(columns / 256), 2]. An element whose mask is 0 keeps its code; the
            scale comes from the elements that are updated.
        anchors, pulls: per tensor None, or a tensor like the parameter and float32 strengths >= 0 that broadcast like a
            mask: the decoupled pull of L2-SP (Li et al., ICML 2018) and EWC (Kirkpatrick et al., PNAS 2017).
        pull_kind: "l2" or "l1" (soft threshold; Parikh and Boyd, Proximal Algorithms, 2014), for all tensors.
        lr, step: numbers, or tensors of one element on the CPU or the params' device; t = step is counted from 1.
        clip: float32 [2] on the same device, as made by `grad_norm`: factor of the gradient, and the skip flag.
        seed, offsets: element i of tensor k gets random numbers that depend only on (seed, step, offsets[k] + i), on
            every backend. By default offsets number the elements of all tensors consecutively.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Raises:
        CofituneError: an argument does not fit, tensors share memory, or the backend asked for cannot run.
    """
    none = [None] * len(params)
    if offsets is None:
        offsets = [0] * len(params)
        for index in range(1, len(params)):
            offsets[index] = offsets[index - 1] + params[index - 1].numel()
    require(0 <= betas[0] < 1 and 0 <= betas[1] < 1, f"{NAME}: betas must lie in [0, 1), not {tuple(betas)}.")
    require(isinstance(step, torch.Tensor) or step >= 1, f"{NAME}: step is counted from 1, not {step}.")
    require((isinstance(lr, torch.Tensor) or lr >= 0) and eps >= 0 and weight_decay >= 0,
            f"{NAME}: lr, eps and weight_decay must not be negative, but they are {lr}, {eps} and {weight_decay}.")
    device = params[0].device if len(params) else torch.device("cpu")
    call = AdamwCall(
        list(params), list(grads), list(exp_avgs), list(exp_avg_sqs), list(remainders), list(scales),
        none if masks is None else list(masks), none if anchors is None else list(anchors),
        none if pulls is None else list(pulls), clip, _scalar("lr", lr, torch.float64, device),
        _scalar("step", step, torch.int64, device), float(betas[0]), float(betas[1]), float(eps), float(weight_decay),
        mask_mode, pull_kind, storage, seed, list(offsets), zero_grad,
    )
    check(call)
    _masked_adamw(*call[:-1], backend)
