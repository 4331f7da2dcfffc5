"""Losses whose gradient measures importance. Each returns the SUM over samples of a per-sample loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..data import label_predictors
from ..errors import CofituneError
from ..models.head import Head, logits_at, states_at

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Proxy:
    """A loss for importance.

    passes: number of consecutive rows of a batch that are one sample, each with its own dropout (1: no dropout).
    loss(model, batch, head) -> float32 scalar, differentiable by the activations. head: `Head.of(model)`, or None.
    uses_head: True if the loss is faster with the model's head.
    """

    name: str
    passes: int
    loss: Callable[[nn.Module, Batch, Head | None], Tensor]
    uses_head: bool


def kl_dropout(model: nn.Module, batch: Batch, head: Head | None) -> Tensor:
    """Sum over samples n of L_n, the mean over the sample's tokens of KL(first pass || second pass).

    Both passes get a gradient. batch: rows 2n and 2n + 1 are the same sample, and differ by dropout. All positions
    except padding count. L_n is a mean over tokens, so that long samples do not dominate; the authors sum over the
    sequence, padding included, times 0.1. Formula: DAS (Ke et al., ICLR 2023), CoFiTune (arXiv 2404.10306).

    The gradient shows which units carry the model's general knowledge, without data of the general domain.
    """
    tokens = batch["attention_mask"].bool()
    counts = tokens.sum(1).tolist()
    if head is None:
        first, second = _pairs(logits_at(model, batch, tokens).float().log_softmax(-1), counts)
        losses = [F.kl_div(q, p, reduction="sum", log_target=True) / len(p) for p, q in zip(first, second, strict=True)]
    else:
        call = {name: batch[name] for name in ("input_ids", "attention_mask")}
        first, second = _pairs(states_at(model, call, tokens.flatten().nonzero()[:, 0]), counts)
        losses = [
            ops.linear_kl(p, q, head.weight, bias=head.bias, scale=head.scale, softcap=head.softcap)
            for p, q in zip(first, second, strict=True)
        ]
    return torch.stack(losses).sum()


def _pairs(rows: Tensor, counts: list[int]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Split [tokens, n] into rows of a batch; returns those with even numbers, and those with odd ones."""
    parts = rows.split(counts)
    return parts[::2], parts[1::2]


def task_nll(model: nn.Module, batch: Batch, head: Head | None = None) -> Tensor:
    """Sum over samples of the mean NLL of the response tokens. It measures importance for the task itself.

    batch: also needs `labels` [rows, tokens], -100 outside the response.
    """
    if "labels" not in batch:
        raise CofituneError("The proxy task_nll needs `labels` in every batch (-100 outside the response).")
    mask, targets = label_predictors(batch["labels"])
    counts = mask.sum(1).tolist()
    if 0 in counts:
        raise CofituneError("A sample has no response token in its labels; leave it out or cut its prompt shorter.")
    logits = logits_at(model, batch, mask)
    losses = F.cross_entropy(logits.float(), targets.to(logits.device), reduction="none")
    return torch.stack([sample.mean() for sample in losses.split(counts)]).sum()


PROXIES = {
    proxy.name: proxy
    for proxy in (
        Proxy("kl_dropout", 2, kl_dropout, True),
        Proxy("task_nll", 1, task_nll, False),
    )
}
