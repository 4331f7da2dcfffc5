"""Cross entropy of the response tokens from the states before the head, a chunk of tokens at a time.

The head is frozen while a region is trained, so the gradient for its input can be made in the forward, chunk by chunk:
never more than CHUNK_BYTES of float32 logits stand in memory, and none of them is kept for the backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import util
from typing import Any

import torch
from torch import Tensor, nn

CHUNK_BYTES = 64 * 2**20
"""Bound on the float32 logits [tokens, vocabulary] alive at once."""


def chunk_rows(vocabulary: int) -> int:
    """How many tokens go through the head together."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


def response_loss(
    model: nn.Module, inputs: dict[str, Any], predictors: Tensor, targets: Tensor, scale: Tensor | float, *,
    chunked: bool, liger: bool = False,
) -> Tensor:
    """scale * the sum of the negative log-likelihoods of `targets`, float32 0-d, differentiable.

    inputs: arguments of the model's forward. predictors: int64 [N], places in the flattened [batch * tokens] whose
    state predicts targets [N]; a place may occur more than once. chunked: as `takes_chunks` says of this model. Else
    all N rows of logits are made, in the model's dtype and in float32. liger: where the package is installed, use
    Liger's fused kernel on a GPU; its backward can run only once.
    """
    head = model.get_output_embeddings()
    if not chunked:
        with _at_head(head, lambda states: states.flatten(0, 1)[predictors].unsqueeze(0)):
            logits = model(**inputs, use_cache=False).logits[0]
        return nn.functional.cross_entropy(logits.float(), targets, reduction="sum") * scale
    chosen: list[Tensor] = []

    def keep(states: Tensor) -> Tensor:
        chosen.append(states.flatten(0, 1)[predictors])
        return states[:1, :1].detach()  # the model goes on with the logits of one token, which nobody reads

    with _at_head(head, keep):
        model(**inputs, use_cache=False)
    if liger and chosen[0].is_cuda and util.find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        return LigerFusedLinearCrossEntropyLoss(reduction="sum")(head.weight, chosen[0], targets, head.bias) * scale
    return _ChunkedCrossEntropy.apply(chosen[0], head.weight, head.bias, targets, scale)


def takes_chunks(model: nn.Module, inputs: dict[str, Tensor] | None = None) -> bool:
    """Whether the model's logits are those of a frozen, unquantised linear head, unchanged afterwards.

    The model looks at `inputs` (default: one token) to see it: soft-capped or scaled logits are another tensor than the
    head's output.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or not head.weight.is_floating_point():
        return False
    if any(parameter.requires_grad for parameter in head.parameters()):
        return False
    outputs: list[Tensor] = []
    handle = head.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        with torch.no_grad():
            if inputs is None:
                inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long, device=head.weight.device)}
            logits = model(**inputs, use_cache=False).logits
    finally:
        handle.remove()
    return logits is outputs[-1]


class _ChunkedCrossEntropy(torch.autograd.Function):
    """d(sum of NLL)/dstates = (softmax(logits) - onehot(targets)) W, rounded where plain autograd rounds."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor,
                scale: Tensor | float) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for start in range(0, len(states), chunk_rows(len(weight))):
            rows = slice(start, start + chunk_rows(len(weight)))
            logits = nn.functional.linear(states[rows], weight, bias)
            likelihoods = torch.log_softmax(logits, -1, dtype=torch.float32)
            total += nn.functional.nll_loss(likelihoods, targets[rows], reduction="sum")
            if gradient is not None:
                errors = likelihoods.exp_().scatter_add_(1, targets[rows, None],
                                                         torch.full_like(likelihoods[:, :1], -1.0))
                torch.mm(errors.mul_(scale).to(weight.dtype), weight, out=gradient[rows])
        ctx.save_for_backward(gradient)
        return total * scale

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output.to(gradient.dtype), None, None, None, None


@contextmanager
def _at_head(head: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block the head receives change(states) instead of the states."""
    handle = head.register_forward_pre_hook(lambda module, inputs: (change(inputs[0]), *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()
