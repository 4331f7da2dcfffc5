"""The losses whose gradient measures importance. Each gives the SUM over samples of a per-sample loss."""

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
    """passes: how many consecutive rows of a batch are one sample, each under its own dropout (1: no dropout).

    loss(model, batch) -> float32 scalar, differentiable in the activations.
    check(model, batch): called once with the first batch, before any noise; raises CofituneError if the loss would
        not be right for this model.
    """

    name: str
    passes: int
    loss: Callable[[nn.Module, Batch], Tensor]
    check: Callable[[nn.Module, Batch], None]


def kl_dropout(model: nn.Module, batch: Batch) -> Tensor:
    """Sum over samples n of L_n = mean over n's tokens of KL(first pass || second pass), with a gradient in both.

    batch: rows 2n and 2n + 1 are the same sample; the model's dropout makes them differ. All non-padding positions
    count. L_n is a mean over tokens (the authors sum over the sequence, padding too, with a constant factor 0.1), so
    that long samples do not dominate the importance. Formula: DAS (Ke et al., ICLR 2023), CoFiTune (arXiv 2404.10306).
    It tells, without any data of the general domain, which units a small disturbance of the model's knowledge goes by.
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
    """Sum over samples of the mean negative log-likelihood of the response tokens: importance for the task itself.

    batch: with `labels` [rows, tokens], -100 outside the response.
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
    """The head as `kl_dropout` applies it must give the model's own logits; some families scale theirs in addition."""
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
