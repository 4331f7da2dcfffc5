"""Next-token distributions of a model on the responses of rows, as their top k."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data import Encoded, batches, label_predictors
from ..models.head import logits_at
from ..models.mode import evaluation_mode
from ..progress import progress

_BATCH_TOKENS = 1024
_CHUNK_BYTES = 64 * 2**20  # bytes of float32 values [positions, vocabulary] alive at once


class Distributions(NamedTuple):
    """Distributions at the N places that predict a row's response, on the CPU.

    Attributes:
        ids: int32 [N, k], the most probable tokens.
        log_p: float32 [N, k], their log-probabilities.
        target_log_p: float32 [N], the log-probabilities of the row's own tokens.
    """

    ids: Tensor
    log_p: Tensor
    target_log_p: Tensor


@torch.no_grad()
def top_distributions(
    model: nn.Module, rows: Sequence[Encoded], pad_token_id: int, k: int, *, mask_target: bool = False
) -> Iterator[tuple[int, Distributions]]:
    """Yield (index of the row, its distributions), rows in any order.

    A k above the vocabulary is cut to it.

    Args:
        mask_target: leave the row's own token out of each distribution, and renormalise the others.
    """
    with evaluation_mode(model), progress("Computing the base's distributions", len(rows), "texts") as task:
        for indices, batch in batches(rows, pad_token_id, max_tokens=_BATCH_TOKENS):
            mask, targets = label_predictors(batch["labels"])
            logits = logits_at(model, {name: tensor.to(model.device) for name, tensor in batch.items()}, mask)
            step = max(1, _CHUNK_BYTES // (4 * logits.shape[-1]))
            pairs = zip(logits.split(step), targets.to(logits.device).split(step), strict=True)
            found = [_top(part, own[:, None], k, mask_target) for part, own in pairs]
            sizes = mask.sum(1).tolist()
            parts = (torch.cat(tensors).cpu().split(sizes) for tensors in zip(*found, strict=True))
            yield from zip(indices, map(Distributions, *parts), strict=True)
            task.advance(len(indices))


def _top(logits: Tensor, targets: Tensor, k: int, mask_target: bool) -> Distributions:
    log_p = torch.log_softmax(logits.float(), -1)
    own = log_p.gather(1, targets).squeeze(1)
    if mask_target:
        log_p = torch.log_softmax(log_p.scatter_(1, targets, -math.inf), -1)
    top = log_p.topk(min(k, log_p.shape[-1] - mask_target))
    return Distributions(top.indices.int(), top.values, own)
