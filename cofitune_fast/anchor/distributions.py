"""Next-token distributions of a model on the responses of rows, as their top k."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..data import Encoded, batches, label_predictors
from ..models.head import logits_at
from ..models.mode import evaluation_mode

_BATCH_TOKENS = 1024
_CHUNK_BYTES = 64 * 2**20  # bytes of float32 values [positions, vocabulary] alive at once


@torch.no_grad()
def top_distributions(
    model: nn.Module, rows: Sequence[Encoded], pad_token_id: int, k: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (index of the row, ids int32 [N, k], log-probabilities float32 [N, k]) on the CPU, rows in any order.

    They are the k most probable tokens at each of the N places that predict the row's response. A k above the
    vocabulary is cut to it.
    """
    with evaluation_mode(model):
        for indices, batch in batches(rows, pad_token_id, max_tokens=_BATCH_TOKENS):
            mask, _ = label_predictors(batch["labels"])
            logits = logits_at(model, {name: tensor.to(model.device) for name, tensor in batch.items()}, mask)
            step = max(1, _CHUNK_BYTES // (4 * logits.shape[-1]))
            found = [torch.log_softmax(part.float(), -1).topk(min(k, part.shape[-1])) for part in logits.split(step)]
            ids = torch.cat([top.indices for top in found]).int().cpu()
            log_p = torch.cat([top.values for top in found]).cpu()
            sizes = mask.sum(1).tolist()
            yield from zip(indices, ids.split(sizes), log_p.split(sizes), strict=True)
