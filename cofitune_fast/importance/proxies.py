"""Losses whose gradient measures importance. Each returns the SUM over samples of a per-sample loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..data import label_predictors
from ..errors import CofituneError
from ..models.head import head_weight, hidden_states, logits_at

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Proxy:
    """A loss for importance.

    passes: number of consecutive rows of a batch that are one sample, each with its own dropout (1: no dropout).
    loss(model, batch) -> float32 scalar, differentiable by the activations.
    check(model, batch): called once with the first batch, without noise; raises CofituneError if the loss would be
        wrong for this model.
    """

    name: str
    passes: int
    loss: Callable[[nn.Module, Batch], Tensor]
    check: Callable[[nn.Module, Batch], None]


def kl_dropout(model: nn.Module, batch: Batch) -> Tensor:
    """Sum over samples n of L_n, the mean over the sample's tokens of KL(first pass || second pass).

    Both passes get a gradient. batch: rows 2n and 2n + 1 are the same sample, and differ by dropout. All positions
    except padding count. L_n is a mean over tokens, so that long samples do not dominate; the authors sum over the
    sequence, padding included, times 0.1. Formula: DAS (Ke et al., ICLR 2023), CoFiTune (arXiv 2404.10306).

    The gradient shows which units carry the model's general knowledge, without data of the general domain.
    """
    hidden = hidden_states(model, batch)
    weight, softcap = head_weight(model)
    tokens = batch["attention_mask"].bool()
    losses = [
        ops.linear_kl(hidden[row][tokens[row]], hidden[row + 1][tokens[row]], weight, softcap=softcap)
        for row in range(0, len(hidden), 2)
    ]
    return torch.stack(losses).sum()


def task_nll(model: nn.Module, batch: Batch) -> Tensor:
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


def _check_head(model: nn.Module, batch: Batch) -> None:
    """Check that the head as `kl_dropout` applies it gives the model's own logits. Some families also scale them."""
    few = {name: batch[name][:1, :8] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        hidden = hidden_states(model, few)
        weight, softcap = head_weight(model)
        ours = F.linear(hidden, weight).float()
        ours = ours if softcap is None else softcap * torch.tanh(ours / softcap)
        theirs = model(**few, use_cache=False).logits.float()
    if not (ours - theirs).norm() <= 0.05 * theirs.norm():  # also true for NaN
        raise CofituneError(
            f"The logits of {type(model).__name__} are not its head weight times its hidden states, or are not finite "
            "numbers, so the proxy kl_dropout cannot be computed; use proxy='task_nll' or mend the weights."
        )


PROXIES = {
    proxy.name: proxy
    for proxy in (
        Proxy("kl_dropout", 2, kl_dropout, _check_head),
        Proxy("task_nll", 1, task_nll, lambda model, batch: None),
    )
}
