"""Losses of chosen tokens from the states before the head, a chunk of tokens at a time.

The head is frozen while a region is trained. So the forward can compute the gradient for the head's input chunk by
chunk, in the memory of the logits. At most CHUNK_BYTES of logits, counted as float32, are in memory at once (twice as
many for a moment where a token is left out of them), and none are kept for the backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import util
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops.softmax import log_sum_exp, scaled_softmax_
from .objectives import CrossEntropy, Objective

CHUNK_BYTES = 64 * 2**20
"""Upper bound in bytes on the logits [tokens, vocabulary] in memory at once, counted as float32."""


def chunk_rows(vocabulary: int) -> int:
    """Number of tokens that go through the head together."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


class Term(NamedTuple):
    """One term of a loss: scale * the sum of an objective's losses.

    Attributes:
        predictors: int64 [N], positions in the flattened [batch * tokens] whose states predict the objective's N
            tokens; a position may occur more than once.
    """

    predictors: Tensor
    objective: Objective
    scale: Tensor | float


def response_losses(
    model: nn.Module, inputs: dict[str, Any], terms: Sequence[Term], *, chunked: bool, liger: bool = False
) -> list[Tensor]:
    """Compute the value of each term from one forward: float32, 0-d, differentiable.

    Args:
        inputs: arguments of the model's forward.
        chunked: result of `takes_chunks` for this model. If False, the logits of all predictors are made at once, in
            the model's dtype and in float32.
        liger: use Liger's fused kernel for plain cross entropy on a GPU, where the package is installed; its backward
            can run only once.
    """
    head = model.get_output_embeddings()
    places = torch.cat([term.predictors for term in terms])
    sizes = [len(term.predictors) for term in terms]
    if not chunked:
        with _at_head(head, lambda states: states.flatten(0, 1)[places].unsqueeze(0)):
            logits = model(**inputs, use_cache=False).logits[0]
        every = slice(None)
        return [
            term.objective.token_losses(
                torch.log_softmax(term.objective.visible(part.float(), every), -1), every
            ).sum() * term.scale
            for term, part in zip(terms, logits.split(sizes), strict=True)
        ]
    chosen: list[Tensor] = []

    def keep(states: Tensor) -> Tensor:
        chosen.append(states.flatten(0, 1)[places])
        # The model goes on with zero tokens: for one token, not contiguous here, PyTorch would copy the head's weight.
        return states[:1, :0].detach()

    with _at_head(head, keep):
        model(**inputs, use_cache=False)
    liger = liger and chosen[0].is_cuda and util.find_spec("liger_kernel") is not None
    return [
        _liger(states, head, term) if liger and len(states) and getattr(term.objective, "loss", None) == "ce"
        else hidden_loss(states, head.weight, head.bias, term.objective, term.scale)
        for term, states in zip(terms, chosen[0].split(sizes), strict=True)
    ]


def response_loss(
    model: nn.Module, inputs: dict[str, Any], predictors: Tensor, targets: Tensor, scale: Tensor | float, *,
    chunked: bool, liger: bool = False,
) -> Tensor:
    """Return scale * the sum of the negative log-likelihoods of `targets` int64 [N]; see `response_losses`."""
    term = Term(predictors, CrossEntropy(targets), scale)
    return response_losses(model, inputs, [term], chunked=chunked, liger=liger)[0]


def hidden_loss(
    states: Tensor, weight: Tensor, bias: Tensor | None, objective: Objective, scale: Tensor | float
) -> Tensor:
    """Return scale * the sum of the objective's losses, float32 0-d, differentiable once, by the states.

    Args:
        states: [N, hidden], the states that predict the objective's N tokens.
        weight: [vocabulary, hidden] of a frozen linear head.
        bias: [vocabulary], or None.
    """
    return _Chunked.apply(states, weight, bias, objective, scale)


def _liger(states: Tensor, head: nn.Module, term: Term) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return loss(head.weight, states, term.objective.targets, head.bias) * term.scale


def takes_chunks(model: nn.Module, inputs: dict[str, Tensor] | None = None) -> bool:
    """True if the model's logits are the unchanged output of a frozen, unquantised linear head.

    The model is run on `inputs` (by default one token) to find out, because soft-capped or scaled logits are another
    tensor than the head's output.
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


class _Chunked(torch.autograd.Function):
    """Computes, in the forward, an objective's gradient by the states: (its gradient by the logits) W.

    It is rounded at the same places as by plain autograd.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, objective: Objective,
                scale: Tensor | float) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for start in range(0, len(states), chunk_rows(len(weight))):
            rows = slice(start, start + chunk_rows(len(weight)))
            logits = objective.visible(nn.functional.linear(states[rows], weight, bias), rows)
            log_sums = log_sum_exp(logits)
            loss, (factors, ids, values) = objective.with_gradient(logits, log_sums, rows)
            total += loss
            if gradient is not None:
                scaled_softmax_(logits, log_sums, factors * scale)
                logits.scatter_(1, ids, (values * scale).to(logits.dtype))
                torch.mm(logits, weight, out=gradient[rows])
        ctx.save_for_backward(gradient)
        return total * scale

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output.to(gradient.dtype), None, None, None, None


@contextmanager
def _at_head(head: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let the head receive change(states) instead of the states inside the block."""
    handle = head.register_forward_pre_hook(lambda module, inputs: (change(inputs[0]), *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()
