"""Losses of chosen tokens from the states before the head, a chunk of tokens at a time.

The head is frozen while a region is trained. So the forward can compute the gradient for the head's input chunk by
chunk, in the memory of the logits. At most CHUNK_BYTES of logits, counted as float32, are in memory at once (twice as
many where a token is left out of them, and where they are soft-capped), and none are kept for the backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import util
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..models.head import Head, at_head, states_at
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
    model: nn.Module, inputs: dict[str, Any], terms: Sequence[Term], *, head: Head | None, liger: bool = False
) -> list[Tensor]:
    """Compute the value of each term from one forward: float32, 0-d, differentiable.

    Args:
        inputs: arguments of the model's forward.
        head: result of `chunked_head` for this model. If None, the logits of all predictors are made at once by the
            model's own forward, in the model's dtype and in float32.
        liger: use Liger's fused kernel for plain cross entropy on a GPU, where the package is installed and the logits
            are neither scaled nor capped; its backward can run only once.
    """
    places = torch.cat([term.predictors for term in terms])
    sizes = [len(term.predictors) for term in terms]
    if head is None:
        with at_head(model, lambda states: states.flatten(0, 1)[places].unsqueeze(0)):
            logits = model(**inputs, use_cache=False).logits[0]
        every = slice(None)
        return [
            term.objective.token_losses(
                torch.log_softmax(term.objective.visible(part.float(), every), -1), every
            ).sum() * term.scale
            for term, part in zip(terms, logits.split(sizes), strict=True)
        ]
    chosen = states_at(model, inputs, places)
    liger = liger and chosen.is_cuda and head.plain and util.find_spec("liger_kernel") is not None
    return [
        _liger(states, head, term) if liger and len(states) and getattr(term.objective, "loss", None) == "ce"
        else hidden_loss(states, head, term.objective, term.scale)
        for term, states in zip(terms, chosen.split(sizes), strict=True)
    ]


def response_loss(
    model: nn.Module, inputs: dict[str, Any], predictors: Tensor, targets: Tensor, scale: Tensor | float, *,
    head: Head | None, liger: bool = False,
) -> Tensor:
    """Return scale * the sum of the negative log-likelihoods of `targets` int64 [N]; see `response_losses`."""
    term = Term(predictors, CrossEntropy(targets), scale)
    return response_losses(model, inputs, [term], head=head, liger=liger)[0]


def hidden_loss(states: Tensor, head: Head, objective: Objective, scale: Tensor | float) -> Tensor:
    """Return scale * the sum of the objective's losses, float32 0-d, differentiable once, by the states.

    Args:
        states: [N, hidden], the states that predict the objective's N tokens.
        head: a frozen one.
    """
    return _Chunked.apply(states.to(head.weight.dtype), head, objective, scale)  # autocast may have made other states


def _liger(states: Tensor, head: Head, term: Term) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return loss(head.weight, states, term.objective.targets, head.bias) * term.scale


def chunked_head(model: nn.Module, inputs: dict[str, Tensor] | None = None) -> Head | None:
    """Describe the model's head if its loss can be computed in chunks: it is frozen, and `Head.of` can describe it.

    inputs: what the model is run on to find out, by default one token.
    """
    if any(parameter.requires_grad for parameter in model.get_output_embeddings().parameters()):
        return None
    return Head.of(model, inputs)


class _Chunked(torch.autograd.Function):
    """Computes, in the forward, an objective's gradient by the states: (its gradient by the raw logits) W.

    It is rounded at the same places as by plain autograd. Only a soft cap is computed in float32, as its slope suffers
    where bfloat16 logits are close to it.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Head, objective: Objective, scale: Tensor | float) -> Tensor:
        weight, bias = head.weight, head.bias
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for start in range(0, len(states), chunk_rows(len(weight))):
            rows = slice(start, start + chunk_rows(len(weight)))
            logits = nn.functional.linear(states[rows], weight, bias)
            if head.softcap is not None:
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            logits = head.scaled(logits)
            slope = head.slope(logits) if gradient is not None else None
            logits = objective.visible(logits, rows)
            log_sums = log_sum_exp(logits)
            loss, (factors, ids, values) = objective.with_gradient(logits, log_sums, rows)
            total += loss
            if gradient is not None:
                scaled_softmax_(logits, log_sums, factors * scale * head.scale)
                logits.scatter_(1, ids, (values * scale * head.scale).to(logits.dtype))
                if slope is not None:
                    logits *= slope
                torch.mm(logits.to(weight.dtype), weight, out=gradient[rows])
        ctx.save_for_backward(gradient)
        return total * scale

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output.to(gradient.dtype), None, None, None
