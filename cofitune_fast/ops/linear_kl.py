"""linear_kl: KL between the next-token distributions of two hidden states, without the full logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch

from . import native, triton
from ._checks import dtype_is, one_device, require, shape_is
from ._registry import operation

_NAME = "linear_kl"
_LOGITS_AT_ONCE = 1 << 23  # tokens times vocabulary
_HEAD_ROWS_AT_ONCE = 8192

KlRows = Callable[[torch.Tensor, torch.Tensor, float | None, bool], torch.Tensor]


def reference(
    z_p: torch.Tensor, z_q: torch.Tensor, softcap: float | None, need_gradients: bool
) -> torch.Tensor:
    """KL(p || q) of each row, from raw logits [rows, V]. With need_gradients the gradients overwrite the logits.

    With z the capped logits: dKL/dz_p = p (log p - log q - KL), dKL/dz_q = q - p, dz/draw = 1 - (z / softcap)^2.
    """
    capped = [z if softcap is None else softcap * torch.tanh(z / softcap) for z in (z_p, z_q)]
    log_p, log_q = (torch.log_softmax(z, -1) for z in capped)
    p, log_ratio = log_p.exp(), log_p - log_q
    kl = (p * log_ratio).sum(-1)
    if need_gradients:
        gradients = p * (log_ratio - kl[:, None]), log_q.exp() - p
        for raw, z, gradient in zip((z_p, z_q), capped, gradients, strict=True):
            raw.copy_(gradient if softcap is None else gradient * (1 - (z / softcap).square()))
    return kl


def _native(z_p: torch.Tensor, z_q: torch.Tensor, softcap: float | None, need_gradients: bool) -> torch.Tensor:
    kl = torch.empty(z_p.shape[0])
    native.library().kl_rows(z_p.data_ptr(), z_q.data_ptr(), kl.data_ptr(), *z_p.shape, softcap or 0.0, need_gradients,
                             torch.get_num_threads())
    return kl


def _triton(*arguments: object) -> torch.Tensor:
    return triton.kernel("linear_kl").kl_rows(*arguments)


op = operation(_NAME, reference)
op.add("cpu", _native, ("cpu",), native.load_error)
op.lack("cuda", "this op has no CUDA C++ kernel; on GPUs it is Triton's")
op.add("triton", _triton, triton.devices(), triton.load_error)


def _by_chunks(
    kl_rows: KlRows, hidden_p: torch.Tensor, hidden_q: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    scale: float, softcap: float | None, chunk_tokens: int, need_gradients: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum of KL(p || q) over the tokens, and its gradients by both hidden states; these are empty if not needed."""
    tokens, dtype = hidden_p.shape[0], torch.promote_types(hidden_p.dtype, torch.float32)
    chunk_tokens = min(chunk_tokens, tokens)
    total = torch.zeros((), dtype=torch.float64, device=hidden_p.device)
    grad_p, grad_q = (torch.empty_like(h) if need_gradients else h.new_empty(0) for h in (hidden_p, hidden_q))
    buffer = hidden_p.new_empty(2 * chunk_tokens, weight.shape[0], dtype=dtype)
    for start in range(0, tokens, max(1, chunk_tokens)):
        rows = slice(start, start + chunk_tokens)
        hidden = torch.cat([hidden_p[rows], hidden_q[rows]])
        count = hidden.shape[0] // 2
        logits = buffer[: 2 * count]
        to_logits(hidden, weight, logits, bias, scale)
        total += kl_rows(logits[:count], logits[count:], softcap, need_gradients).sum(dtype=torch.float64)
        if need_gradients:
            grad_p[rows], grad_q[rows] = _to_hidden(logits, weight, hidden.dtype).mul_(scale).split(count)
    return total.to(dtype), grad_p, grad_q


def to_logits(
    hidden: torch.Tensor, weight: torch.Tensor, logits: torch.Tensor, bias: torch.Tensor | None = None,
    scale: float = 1.0,
) -> None:
    """Write scale * (hidden W^T + bias) into `logits`, with products and sums in the logits' dtype."""
    if _mixes(weight, hidden.dtype):
        torch.mm(hidden, weight.T, out_dtype=torch.float32, out=logits)
        if scale != 1:
            logits.mul_(scale)
    else:
        hidden = hidden.to(logits.dtype)
        if scale != 1:
            hidden = hidden * scale  # fewer numbers than the logits
        for rows, part in _slices(weight, logits.dtype):
            torch.mm(hidden, part.T, out=logits[:, rows])
    if bias is not None:
        logits.add_(bias.to(logits.dtype), alpha=scale)


def _to_hidden(gradients: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Gradients by the hidden states, gradients W. dtype: that of the hidden states. May overwrite `gradients`."""
    if _mixes(weight, dtype):
        high = gradients.bfloat16()  # high + low have 16 bits of a gradient, and the result is rounded to 8
        low = gradients.sub_(high).bfloat16()
        return torch.mm(high, weight, out_dtype=torch.float32) + torch.mm(low, weight, out_dtype=torch.float32)
    result = gradients.new_zeros(gradients.shape[0], weight.shape[1])
    for rows, part in _slices(weight, gradients.dtype):
        result.addmm_(gradients[:, rows], part)
    return result


def _mixes(weight: torch.Tensor, dtype: torch.dtype) -> bool:
    """True if torch can multiply two bfloat16 matrices into a float32 one here: exact products, float32 sums."""
    return weight.is_cuda and torch.version.hip is None and weight.dtype == dtype == torch.bfloat16


def _slices(weight: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the head's rows in `dtype`: all at once if they have it, else in slices, so that no full copy exists."""
    step = max(1, weight.shape[0]) if weight.dtype == dtype else _HEAD_ROWS_AT_ONCE
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        yield rows, weight[rows].to(dtype)


@torch.library.custom_op(
    "cofitune_fast::linear_kl",
    mutates_args=(),
    schema="(Tensor hidden_p, Tensor hidden_q, Tensor weight, Tensor? bias, float scale, float? softcap, "
    "int chunk_tokens, bool need_gradients, str backend) -> (Tensor, Tensor, Tensor)",
)
def _linear_kl(hidden_p, hidden_q, weight, bias, scale, softcap, chunk_tokens, need_gradients, backend):
    kl_rows = partial(op.run, backend, hidden_p.device)
    return _by_chunks(kl_rows, hidden_p, hidden_q, weight, bias, scale, softcap, chunk_tokens, need_gradients)


@_linear_kl.register_fake
def _(hidden_p, hidden_q, weight, bias, scale, softcap, chunk_tokens, need_gradients, backend):
    total = hidden_p.new_empty((), dtype=torch.promote_types(hidden_p.dtype, torch.float32))
    grad_p, grad_q = (torch.empty_like(h) if need_gradients else h.new_empty(0) for h in (hidden_p, hidden_q))
    return total, grad_p, grad_q


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_total, *_):
    if grad_total is None:
        return (None,) * 9
    grads = [(grad_total * saved).to(saved.dtype) for saved in ctx.saved_tensors]
    return *grads, *[None] * 7


_linear_kl.register_autograd(_backward, setup_context=_setup_context)


def linear_kl(
    hidden_p: torch.Tensor, hidden_q: torch.Tensor, weight: torch.Tensor, *,
    bias: torch.Tensor | None = None, scale: float = 1.0, softcap: float | None = None,
    chunk_tokens: int | None = None, reduction: str = "mean", backend: str = "auto",
) -> torch.Tensor:
    """Compute KL(softmax(z_p) || softmax(z_q)) in nats, over N tokens, with z = scale * (hidden W^T + bias).

    It can be differentiated once, by both hidden states but not by the head. Both gradients are computed together
    with the loss, so that at most `chunk_tokens` rows of logits exist at a time. Arithmetic is in float32 or better,
    with one exception: for bfloat16 on CUDA the gradients by the logits enter the last matrix product with 16
    significant bits.

    Memory beside the inputs and both gradients: 8 chunk_tokens V bytes for the float32 logits of both sides (64 MiB by
    default, at any N); 24 chunk_tokens H bytes; and 32 KiB times H if the head has another dtype and is copied in
    slices. The reference takes up to ten times as much for the logits, bfloat16 on CUDA twice as much.

    Args:
        hidden_p, hidden_q: [N, H], float32, bfloat16 (or float64), of one dtype.
        weight: the head [V, H], any of these dtypes; no gradient flows to it.
        bias: of the head, [V], or None.
        scale: factor on the logits, as in Granite and Cohere.
        softcap: c of the final soft cap c tanh(z / c) that some families (Gemma 2) put on the logits z.
        chunk_tokens: rows of logits at a time; None: 2^23 / V, but at least one.
        reduction: "mean" over the N tokens, or "sum"; both are 0 without tokens.
        backend: "auto", "reference", "cpu", "triton" or "cuda". It computes divergences and gradients from the logits;
            the matrix products are torch's. float64 has the reference only.

    Returns:
        0-d, float32 (float64 for float64 inputs).

    Raises:
        CofituneError: an argument does not fit, or the backend asked for cannot run.
    """
    for name, tensor in (("hidden_p", hidden_p), ("hidden_q", hidden_q), ("weight", weight)):
        require(tensor.dim() == 2, f"{_NAME}: {name} must have two dimensions, but its shape is {list(tensor.shape)}.")
        dtype_is(_NAME, name, tensor, torch.float32, torch.bfloat16, torch.float64)
    dtype_is(_NAME, "hidden_q", hidden_q, hidden_p.dtype)
    shape_is(_NAME, "hidden_q", hidden_q, hidden_p.shape)
    require(weight.shape[1] == hidden_p.shape[1],
            f"{_NAME}: weight has {weight.shape[1]} columns, but the hidden states have {hidden_p.shape[1]}.")
    require(weight.shape[0] > 0, f"{_NAME}: weight has no rows; the vocabulary must have at least one token.")
    one_device(_NAME, hidden_p=[hidden_p], hidden_q=[hidden_q], weight=[weight], bias=[bias])
    if bias is not None:
        dtype_is(_NAME, "bias", bias, torch.float32, torch.bfloat16, torch.float64)
        shape_is(_NAME, "bias", bias, weight.shape[:1])
        bias = bias.detach()
    require(math.isfinite(scale), f"{_NAME}: scale must be a finite number, not {scale}.")
    require(softcap is None or 0 < softcap < math.inf, f"{_NAME}: softcap must be positive or None, not {softcap}.")
    require(reduction in ("mean", "sum"), f"{_NAME}: reduction must be 'mean' or 'sum', not {reduction!r}.")
    if chunk_tokens is None:
        chunk_tokens = max(1, _LOGITS_AT_ONCE // weight.shape[0])
    require(chunk_tokens >= 1, f"{_NAME}: chunk_tokens must be at least 1, not {chunk_tokens}.")
    if hidden_p.dtype == torch.float64:
        require(backend in ("auto", "reference"),
                f"{_NAME}: float64 has the reference only; use backend='auto' or 'reference', not {backend!r}.")
        backend = "reference"
    need_gradients = torch.is_grad_enabled() and (hidden_p.requires_grad or hidden_q.requires_grad)
    head = weight.detach(), bias, scale, softcap
    total = _linear_kl(hidden_p, hidden_q, *head, chunk_tokens, need_gradients, backend)[0]
    return total / max(1, hidden_p.shape[0]) if reduction == "mean" else total
