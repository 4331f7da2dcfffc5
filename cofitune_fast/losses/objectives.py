"""Per-token losses on the logits, with hand-written gradients.

An objective has N tokens. `visible` gives the logits it is about: the model's, or these without a token that is left
out. `token_losses` defines it on them: float32 and differentiable. `with_gradient` returns the same loss with its
gradient by the visible logits, for losses computed in chunks. q are the probabilities of the visible logits z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

Loss = Literal["ce", "dft", "eaft"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
_ENTROPY_OVER = 20  # EAFT takes the entropy of the 20 most probable tokens
_LEAST_TAIL = 1e-6  # a float32 sum of probabilities has an error of about 1e-7


class Gradient(NamedTuple):
    """Gradient of a sum of losses by the logits z [n, vocabulary].

    It is `factors` [n] times q, except at the tokens `ids` int64 [n, k], where it is `values` [n, k].
    """

    factors: Tensor
    ids: Tensor
    values: Tensor


class Objective(Protocol):
    def __len__(self) -> int: ...

    def visible(self, logits: Tensor, rows: slice) -> Tensor:
        """Return the logits of the tokens `rows` that the losses are of, [n, vocabulary]; differentiable."""

    def token_losses(self, log_q: Tensor, rows: slice) -> Tensor:
        """Return the losses [n] of the tokens `rows`, given their log-probabilities [n, vocabulary]."""

    def with_gradient(self, logits: Tensor, log_sums: Tensor, rows: slice) -> tuple[Tensor, Gradient]:
        """Return the sum of the losses of the tokens `rows` and its gradient by their logits [n, vocabulary].

        Args:
            log_sums: [n], from `ops.log_sum_exp`; logits minus these are log q. All results have their dtype.
        """


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """Weighted cross entropy -w log q_target of the tokens `targets` int64 [N].

    No gradient flows through the weight w, which depends on `loss`:
        "ce": 1.
        "dft": q_target (Dynamic Fine-Tuning, arXiv 2508.05629).
        "eaft": the entropy of the 20 most probable tokens, renormalised, divided by ln 20 (Entropy-Adaptive
            Fine-Tuning, arXiv 2601.02151). It is small where the model is sure of its answer, right or wrong.
    """

    targets: Tensor
    loss: Loss = "ce"

    def __len__(self) -> int:
        return len(self.targets)

    def visible(self, logits: Tensor, rows: slice) -> Tensor:
        return logits

    def token_losses(self, log_q: Tensor, rows: slice) -> Tensor:
        nll = -log_q.gather(1, self.targets[rows, None]).squeeze(1)
        return self._weights(log_q, nll) * nll

    def with_gradient(self, logits: Tensor, log_sums: Tensor, rows: slice) -> tuple[Tensor, Gradient]:
        ids = self.targets[rows, None]
        nll = -_log_q(logits, log_sums, ids).squeeze(1)
        weights = self._weights(logits, nll)
        return (weights * nll).sum(), Gradient(weights, ids, (weights * torch.expm1(-nll))[:, None])

    @torch.no_grad()
    def _weights(self, logits: Tensor, nll: Tensor) -> Tensor:
        """Return the weights [n], from logits or from log q."""
        if self.loss == "ce":
            return torch.ones_like(nll)
        if self.loss == "dft":
            return (-nll).exp()
        top = logits.topk(min(_ENTROPY_OVER, logits.shape[1])).values.to(nll.dtype).log_softmax(-1)
        return -(top.exp() * top).sum(-1) / math.log(_ENTROPY_OVER)


@dataclass(frozen=True, eq=False)
class TopKl:
    """KL(p || q) over the k most probable tokens under p, with all other tokens merged into one.

    It ignores how p is spread over the other tokens. So it is at most the KL of the full distributions (data processing
    inequality), and 0 where q equals p.

    Attributes:
        ids: int [N, k], those tokens.
        log_p: float32 [N, k], their log-probabilities.
        without: int64 [N], a token that is left out of q at each place, whose other tokens are renormalised ("mask the
            target", arXiv 2605.29498); p must leave it out too. None: no token.
    """

    ids: Tensor
    log_p: Tensor
    without: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def visible(self, logits: Tensor, rows: slice) -> Tensor:
        return logits if self.without is None else logits.scatter(1, self.without[rows, None], -math.inf)

    def token_losses(self, log_q: Tensor, rows: slice) -> Tensor:
        return self._divergences(log_q.gather(1, self.ids[rows].long()), rows)

    def with_gradient(self, logits: Tensor, log_sums: Tensor, rows: slice) -> tuple[Tensor, Gradient]:
        """Return the sum and the gradient: dKL/dz_j = q_j - p_j for the k tokens, q_j (1 - p_tail / q_tail) for the
        others.
        """
        ids, log_p = self.ids[rows].long(), self.log_p[rows]
        log_top = _log_q(logits, log_sums, ids)
        factors = 1 - _tail(log_p) / _tail(log_top)
        return self._divergences(log_top, rows).sum(), Gradient(factors, ids, log_top.exp() - log_p.exp())

    def _divergences(self, log_top: Tensor, rows: slice) -> Tensor:
        log_p = self.log_p[rows]
        p_tail, q_tail = _tail(log_p), _tail(log_top)
        return (log_p.exp() * (log_p - log_top)).sum(-1) + p_tail * (p_tail.log() - q_tail.log())


class ReverseTopKl(TopKl):
    """KL(q || p) over the same merged tokens as TopKl, with the model's distribution first."""

    def with_gradient(self, logits: Tensor, log_sums: Tensor, rows: slice) -> tuple[Tensor, Gradient]:
        """Return the sum and the gradient: dKL/dz_j = q_j (log q_g / p_g - KL), g being token j or the others as one.
        """
        ids, log_p = self.ids[rows].long(), self.log_p[rows]
        log_top = _log_q(logits, log_sums, ids)
        losses = self._divergences(log_top, rows)
        factors = (_tail(log_top) / _tail(log_p)).log() - losses
        return losses.sum(), Gradient(factors, ids, log_top.exp() * (log_top - log_p - losses[:, None]))

    def _divergences(self, log_top: Tensor, rows: slice) -> Tensor:
        log_p = self.log_p[rows]
        p_tail, q_tail = _tail(log_p), _tail(log_top)
        return (log_top.exp() * (log_top - log_p)).sum(-1) + q_tail * (q_tail.log() - p_tail.log())


def _log_q(logits: Tensor, log_sums: Tensor, ids: Tensor) -> Tensor:
    return logits.gather(1, ids).to(log_sums.dtype) - log_sums[:, None]


def _tail(log_top: Tensor) -> Tensor:
    return (1 - log_top.exp().sum(-1)).clamp_min(_LEAST_TAIL)
