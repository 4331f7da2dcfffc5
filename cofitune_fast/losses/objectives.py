"""What the next-token distributions at chosen tokens are to be: losses of a token, and their gradients by its logits.

An objective has N tokens. Its `token_losses` are float32, differentiable, and what defines it; `with_gradient` is the
same for those who make the gradient by hand, chunk by chunk. q are the model's probabilities, z its logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

LOSSES = ("ce", "dft", "eaft")
_ENTROPY_OVER = 20  # EAFT's entropy is that of the most probable tokens
_LEAST_TAIL = 1e-6  # float32 sums of probabilities are known to some 1e-7


class Gradient(NamedTuple):
    """Of a sum of losses by the logits z [n, vocabulary]: `factors` [n] times q, but at `ids` int64 [n, k] `values`."""

    factors: Tensor
    ids: Tensor
    values: Tensor


class Objective(Protocol):
    def __len__(self) -> int: ...

    def token_losses(self, log_q: Tensor, rows: slice) -> Tensor:
        """Losses [n] of the tokens `rows`, from their log-probabilities [n, vocabulary]."""

    def with_gradient(self, logits: Tensor, log_sums: Tensor, rows: slice) -> tuple[Tensor, Gradient]:
        """The sum of the losses of the tokens `rows`, and its gradient by their logits [n, vocabulary].

        log_sums: [n], of `ops.log_sum_exp`; logits minus these are log q. All results are of their dtype.
        """


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
        return self._weights(log_q, nll) * nll

    def with_gradient(self, logits: Tensor, log_sums: Tensor, rows: slice) -> tuple[Tensor, Gradient]:
        ids = self.targets[rows, None]
        nll = -_log_q(logits, log_sums, ids).squeeze(1)
        weights = self._weights(logits, nll)
        return (weights * nll).sum(), Gradient(weights, ids, (weights * torch.expm1(-nll))[:, None])

    @torch.no_grad()
    def _weights(self, logits: Tensor, nll: Tensor) -> Tensor:
        """Logits, or log q."""
        if self.loss == "ce":
            return torch.ones_like(nll)
        if self.loss == "dft":
            return (-nll).exp()
        top = logits.topk(min(_ENTROPY_OVER, logits.shape[1])).values.to(nll.dtype).log_softmax(-1)
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
        return self._divergences(log_q.gather(1, self.ids[rows].long()), rows)

    def with_gradient(self, logits: Tensor, log_sums: Tensor, rows: slice) -> tuple[Tensor, Gradient]:
        """dKL/dz_j = q_j - p_j of the k tokens, and q_j (1 - p_tail / q_tail) of the others."""
        ids, log_p = self.ids[rows].long(), self.log_p[rows]
        log_top = _log_q(logits, log_sums, ids)
        factors = 1 - _tail(log_p) / _tail(log_top)
        return self._divergences(log_top, rows).sum(), Gradient(factors, ids, log_top.exp() - log_p.exp())

    def _divergences(self, log_top: Tensor, rows: slice) -> Tensor:
        log_p = self.log_p[rows]
        p_tail, q_tail = _tail(log_p), _tail(log_top)
        return (log_p.exp() * (log_p - log_top)).sum(-1) + p_tail * (p_tail.log() - q_tail.log())


def _log_q(logits: Tensor, log_sums: Tensor, ids: Tensor) -> Tensor:
    return logits.gather(1, ids).to(log_sums.dtype) - log_sums[:, None]


def _tail(log_top: Tensor) -> Tensor:
    return (1 - log_top.exp().sum(-1)).clamp_min(_LEAST_TAIL)
