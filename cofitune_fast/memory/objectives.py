"""What the next-token distributions at chosen tokens are to be: losses of a token, and their gradients by its logits.

An objective has N tokens. Its `token_losses` are float32, differentiable, and what defines it; `gradient_` is the same
for those who make the gradient by hand, chunk by chunk. q are the model's probabilities, z its logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

LOSSES = ("ce", "dft", "eaft")
_ENTROPY_OVER = 20  # EAFT's entropy is that of the most probable tokens
_LEAST_TAIL = 1e-6  # float32 sums of probabilities are known to some 1e-7


class Objective(Protocol):
    def __len__(self) -> int: ...

    def token_losses(self, log_q: Tensor, rows: slice) -> Tensor:
        """Losses [n] of the tokens `rows`, from their log-probabilities [n, vocabulary]."""

    def gradient_(self, log_q: Tensor, rows: slice) -> Tensor:
        """The sum of the losses; their gradient by the logits overwrites `log_q`."""


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """-w log q_target, of the tokens `targets` int64 [N]. The weight w has no gradient; it is, by `loss`,

    "ce": 1; "dft": q_target (Dynamic Fine-Tuning, arXiv 2508.05629); "eaft": the entropy of the 20 most probable
    tokens, renormalised, over ln 20 (Entropy-Adaptive Fine-Tuning, arXiv 2601.02151): little where the model is sure of
    its answer, right or wrong.
    """

    targets: Tensor
    loss: str = "ce"

    def __len__(self) -> int:
        return len(self.targets)

    def token_losses(self, log_q: Tensor, rows: slice) -> Tensor:
        nll = -log_q.gather(1, self.targets[rows, None]).squeeze(1)
        weights = self._weights(log_q, nll)
        return nll if weights is None else weights * nll

    def gradient_(self, log_q: Tensor, rows: slice) -> Tensor:
        targets = self.targets[rows, None]
        nll = -log_q.gather(1, targets).squeeze(1)
        weights = self._weights(log_q, nll)
        errors = log_q.exp_().scatter_add_(1, targets, torch.full_like(log_q[:, :1], -1.0))
        if weights is None:
            return nll.sum()
        errors.mul_(weights[:, None])
        return (weights * nll).sum()

    @torch.no_grad()
    def _weights(self, log_q: Tensor, nll: Tensor) -> Tensor | None:
        if self.loss == "ce":
            return None
        if self.loss == "dft":
            return (-nll).exp()
        top = torch.log_softmax(log_q.topk(min(_ENTROPY_OVER, log_q.shape[1])).values, -1)
        return -(top.exp() * top).sum(-1) / math.log(_ENTROPY_OVER)


@dataclass(frozen=True, eq=False)
class TopKl:
    """KL(p || q) of the k tokens that are the most probable under p, and of all others together as one.

    ids: int [N, k]; log_p: float32 [N, k], log-probabilities of these tokens. What p spreads over the others does not
    matter, so it is at most the KL of the whole distributions (data processing inequality), and 0 where q is p.
    """

    ids: Tensor
    log_p: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def token_losses(self, log_q: Tensor, rows: slice) -> Tensor:
        log_p, log_top = self.log_p[rows], log_q.gather(1, self.ids[rows].long())
        p_tail, q_tail = _tail(log_p), _tail(log_top)
        return (log_p.exp() * (log_p - log_top)).sum(-1) + p_tail * (p_tail.log() - q_tail.log())

    def gradient_(self, log_q: Tensor, rows: slice) -> Tensor:
        """dKL/dz_j = q_j - p_j of the k tokens, and q_j (1 - p_tail / q_tail) of the others."""
        ids, log_p = self.ids[rows].long(), self.log_p[rows]
        total = self.token_losses(log_q, rows).sum()
        q = log_q.exp_()
        top = q.gather(1, ids)
        q.mul_(1 - _tail(log_p)[:, None] / _tail(top.log())[:, None]).scatter_(1, ids, top - log_p.exp())
        return total


def _tail(log_top: Tensor) -> Tensor:
    return (1 - log_top.exp().sum(-1)).clamp_min(_LEAST_TAIL)
