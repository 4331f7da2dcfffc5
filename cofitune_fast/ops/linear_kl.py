"""linear_kl: KL between the next-token distributions of two hidden states through one head, never the full logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ._checks import dtype_is, one_device, require, shape_is
from ._registry import operation

_NAME = "linear_kl"
_LOGITS_AT_ONCE = 1 << 23  # tokens times vocabulary: 32 MiB per float32 buffer, of which some six live at a time
_HEAD_ROWS_AT_ONCE = 8192


def _slices(weight: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of the head in float32, a slice at a time, so that a bfloat16 head is never copied whole."""
    for start in range(0, weight.shape[0], _HEAD_ROWS_AT_ONCE):
        rows = slice(start, start + _HEAD_ROWS_AT_ONCE)
        yield rows, weight[rows].to(dtype)


def _logits(hidden: torch.Tensor, weight: torch.Tensor, softcap: float | None) -> torch.Tensor:
    logits = hidden.new_empty(hidden.shape[0], weight.shape[0])
    for rows, part in _slices(weight, hidden.dtype):
        logits[:, rows] = hidden @ part.T
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _to_hidden(
    grad: torch.Tensor, logits: torch.Tensor, weight: torch.Tensor, softcap: float | None
) -> torch.Tensor:
    if softcap is not None:
        grad = grad * (1 - (logits / softcap).square())
    return sum(grad[:, rows] @ part for rows, part in _slices(weight, grad.dtype))


def reference(
    hidden_p: torch.Tensor, hidden_q: torch.Tensor, weight: torch.Tensor, softcap: float | None, chunk_tokens: int,
    need_gradients: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sum of KL(p || q) over the tokens and its gradients by both hidden states, token chunk by token chunk.

    With z the logits: dKL/dz_p = p (log p - log q - KL), dKL/dz_q = q - p.
    """
    dtype = torch.promote_types(hidden_p.dtype, torch.float32)
    total = torch.zeros((), dtype=dtype, device=hidden_p.device)
    grad_p, grad_q = (torch.empty_like(h) if need_gradients else h.new_empty(0) for h in (hidden_p, hidden_q))
    for start in range(0, hidden_p.shape[0], chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        z_p, z_q = (_logits(h[rows].to(dtype), weight, softcap) for h in (hidden_p, hidden_q))
        log_ratio = torch.log_softmax(z_p, -1)
        p = log_ratio.exp()
        log_q = torch.log_softmax(z_q, -1)
        log_ratio -= log_q
        kl = (p * log_ratio).sum(-1, keepdim=True)
        total += kl.sum()
        if need_gradients:
            grad_p[rows] = _to_hidden(p * (log_ratio - kl), z_p, weight, softcap)
            grad_q[rows] = _to_hidden(log_q.exp() - p, z_q, weight, softcap)
    return total, grad_p, grad_q


_op = operation(_NAME, reference)
_op.lack("cpu", "this op has no native CPU kernel; the reference already spends its time in matrix products")
_op.lack("triton", "there is no Triton kernel for it yet in this version")
_op.lack("cuda", "this op has no CUDA C++ kernel; on GPUs it is Triton's")


@torch.library.custom_op(
    "cofitune_fast::linear_kl",
    mutates_args=(),
    schema="(Tensor hidden_p, Tensor hidden_q, Tensor weight, float? softcap, int chunk_tokens, bool need_gradients, "
    "str backend) -> (Tensor, Tensor, Tensor)",
)
def _linear_kl(hidden_p, hidden_q, weight, softcap, chunk_tokens, need_gradients, backend):
    return _op.run(backend, hidden_p.device, hidden_p, hidden_q, weight, softcap, chunk_tokens, need_gradients)


@_linear_kl.register_fake
def _(hidden_p, hidden_q, weight, softcap, chunk_tokens, need_gradients, backend):
    total = hidden_p.new_empty((), dtype=torch.promote_types(hidden_p.dtype, torch.float32))
    grad_p, grad_q = (torch.empty_like(h) if need_gradients else h.new_empty(0) for h in (hidden_p, hidden_q))
    return total, grad_p, grad_q


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_total, *_):
    if grad_total is None:
        return (None,) * 7
    grads = [(grad_total * saved).to(saved.dtype) for saved in ctx.saved_tensors]
    return *grads, None, None, None, None, None


_linear_kl.register_autograd(_backward, setup_context=_setup_context)


def linear_kl(
    hidden_p: torch.Tensor, hidden_q: torch.Tensor, weight: torch.Tensor, *, softcap: float | None = None,
    chunk_tokens: int | None = None, reduction: str = "mean", backend: str = "auto",
) -> torch.Tensor:
    """KL(softmax(hidden_p W^T) || softmax(hidden_q W^T)) in nats, over N tokens.

    Differentiable once, in both hidden states and not in the weight. Both gradients are computed along with the loss,
    so that at no time more than `chunk_tokens` rows of logits exist. All arithmetic is in float32 at least.

    Args:
        hidden_p, hidden_q: [N, H], float32, bfloat16 (or float64), of one dtype.
        weight: the head [V, H], any of these dtypes; no gradient flows to it.
        softcap: c of the final soft cap z = c tanh(raw / c) that some families (Gemma 2) put on the logits.
        chunk_tokens: rows of logits at a time; None: as many as keep a buffer at some 32 MiB.
        reduction: "mean" over the N tokens, or "sum"; of no tokens both are 0.
        backend: "auto" or "reference" in this version.

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
    one_device(_NAME, hidden_p=[hidden_p], hidden_q=[hidden_q], weight=[weight])
    require(softcap is None or softcap > 0, f"{_NAME}: softcap must be positive or None, not {softcap}.")
    require(reduction in ("mean", "sum"), f"{_NAME}: reduction must be 'mean' or 'sum', not {reduction!r}.")
    if chunk_tokens is None:
        chunk_tokens = max(1, _LOGITS_AT_ONCE // max(1, weight.shape[0]))
    require(chunk_tokens >= 1, f"{_NAME}: chunk_tokens must be at least 1, not {chunk_tokens}.")
    need_gradients = torch.is_grad_enabled() and (hidden_p.requires_grad or hidden_q.requires_grad)
    total = _linear_kl(hidden_p, hidden_q, weight.detach(), softcap, chunk_tokens, need_gradients, backend)[0]
    return total / max(1, hidden_p.shape[0]) if reduction == "mean" else total
