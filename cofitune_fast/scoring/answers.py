"""Score answers of rows: their negative log-likelihood, and exact match under greedy decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data import Encoded, collate_trie, pad_rows, padded_places, plan_batches, plan_packs, row_predictors
from ..errors import CofituneError
from ..memory.abilities import takes_tries
from ..memory.cached_prefix import CachedPrefix
from ..memory.prefix_cache import PlacedRow, row_keys
from ..models.attention import trie_attention
from ..models.head import select_positions
from ..models.mode import evaluation_mode
from ..progress import progress
from .results import ItemScore

CHUNK_BYTES = 256 * 2**20
"""Bound on the fp32 values [positions, vocabulary] alive at once: logits and their log-softmax."""
_PACKED, _PADDED, _ROW = -1, -2, -3  # markers in the keys of batches, beside token ids


def answer_scores(
    model: nn.Module, rows: Sequence[Encoded], pad_token_id: int, max_tokens_per_batch: int = 4096, *,
    prefix: CachedPrefix | None = None,
) -> list[ItemScore]:
    """Compute for each row the summed NLL of its response, its number of tokens, and if all are the most probable.

    Common beginnings of rows are computed once (`data.packing`) if the model's attention takes tries; else rows are
    padded. prefix: a prefix of `model`, entered as a context. The layers of the prefix run only for batches that are
    not in its cache. The cache stores whole batches, so a score has the same bits with and without it.
    """
    packed = takes_tries(model, max(len(row.input_ids) for row in rows))
    planned = (_packed(rows, max_tokens_per_batch) if packed else
               _padded(rows, pad_token_id, max_tokens_per_batch))
    scores: list[ItemScore | None] = [None] * len(rows)
    with (evaluation_mode(model), torch.no_grad(), trie_attention(model) if packed else nullcontext(),
          progress("Scoring answers", len(rows), "answers") as task):
        for batch in planned:
            for (index, _, _), nll, hit in zip(batch.answers, *_forward(model, batch, prefix), strict=True):
                if not nll.isfinite().all():
                    raise CofituneError(
                        f"The model gives {rows[index].where or 'an item'} a log-likelihood that is not finite; "
                        "its weights may be damaged."
                    )
                scores[index] = ItemScore(nll.sum().item(), len(nll), bool(hit.all()))
            task.advance(len(batch.answers))
    return scores


@dataclass(frozen=True, eq=False)
class _Batch:
    """A batch of answers.

    call: arguments of the model's forward.
    answers: (index of the row, places in the flattened [batch, tokens] that predict its answer, ids of the answer).
    states: places whose states the prefix cache stores, with the batch's key.
    """

    call: dict[str, Tensor]
    answers: list[tuple[int, Sequence[int], list[int]]]
    states: PlacedRow


def _packed(rows: Sequence[Encoded], max_tokens: int) -> Iterator[_Batch]:
    for pack in plan_packs(rows, max_tokens):
        key = _key(_PACKED, [rows[index] for index, _, _ in pack.rows])
        yield _Batch(collate_trie(pack), pack.rows, PlacedRow(key, torch.arange(len(pack.ids))))


def _padded(rows: Sequence[Encoded], pad_token_id: int, max_tokens: int) -> Iterator[_Batch]:
    for indices in plan_batches([len(row.input_ids) for row in rows], max_tokens=max_tokens):
        chosen = [rows[index] for index in indices]
        batch = pad_rows(chosen, pad_token_id)
        places = padded_places(chosen, batch["input_ids"].shape[1])
        answers = [(index, *row_predictors(rows[index], path)) for index, path in zip(indices, places, strict=True)]
        states = torch.cat([torch.arange(path.start, path.stop) for path in places])
        yield _Batch(batch, answers, PlacedRow(_key(_PADDED, chosen), states))


def _key(form: int, rows: Sequence[Encoded]) -> bytes:
    """Key of a whole batch. States of a row can differ in the last bit from one batch to another."""
    content = [form]
    for row in rows:
        content += [_ROW, *row.input_ids[:-1]]
    return row_keys([content])[0]


def _forward(model: nn.Module, batch: _Batch, prefix: CachedPrefix | None) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """NLLs (float64) of the tokens of each answer, and for each token True if it is the most probable one."""
    device = model.get_input_embeddings().weight.device
    call = {name: tensor.to(device) for name, tensor in batch.call.items()}
    places = torch.tensor([place for _, predictors, _ in batch.answers for place in predictors])
    targets = torch.tensor([token for _, _, answer in batch.answers for token in answer])
    mask = torch.zeros(call["input_ids"].shape, dtype=torch.bool)
    mask.view(-1)[places] = True
    given = prefix.forward(call, [batch.states]) if prefix is not None else nullcontext(call)
    with select_positions(model, mask), given as call:
        logits = model(**call, use_cache=False).logits[0]
    # One place can predict the first token of several answers, so each place is mapped to its row of logits.
    nlls, hits = token_scores(logits, targets, (mask.flatten().cumsum(0) - 1)[places])
    sizes = [len(answer) for _, _, answer in batch.answers]
    return nlls.split(sizes), hits.split(sizes)


def token_scores(logits: Tensor, targets: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Compute NLL (float64 [N]) of targets [N] under logits[places], and True where it is the most probable token.

    logits: [positions, vocabulary], normalised in fp32 in chunks. places: [N], rows of logits, in any order. Results
    are on the CPU.
    """
    chunk = max(1, CHUNK_BYTES // (2 * 4 * logits.shape[-1]))  # two fp32 tensors: the logits and their log-softmax
    nlls, hits = [], []
    for rows, wanted in zip(places.to(logits.device).split(chunk), targets.to(logits.device).split(chunk), strict=True):
        part = logits[rows]
        nlls.append(nn.functional.cross_entropy(part.float(), wanted, reduction="none").cpu().double())
        hits.append((part.argmax(-1) == wanted).cpu())
    return torch.cat(nlls), torch.cat(hits)
