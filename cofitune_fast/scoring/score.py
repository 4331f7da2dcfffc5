"""Scoring by teacher forcing: the probabilities a model gives to answers that are already written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data import (
    IGNORED_LABEL,
    Encoded,
    batches,
    collate_packs,
    encode_examples,
    encode_prompt,
    pack_rows,
    pad_token_id,
    plan_batches,
)
from ..data.encode import encode_continuation, encode_text, prompt_text
from ..errors import CofituneError
from ..models.attention import takes_packs
from ..models.head import response_logits, select_positions
from ..models.mode import evaluation_mode
from .results import ItemScore, Score, SuiteScores, make_score
from .suite import Suite
from .tasks import ChoiceItem, Task

CHUNK_BYTES = 256 * 2**20
"""Bound on the fp32 values [positions, vocabulary] alive at once: logits and their log-softmax."""


def score_suite(
    model: nn.Module,
    tokenizer: Any,
    suite: Suite,
    *,
    max_tokens_per_batch: int = 4096,
    max_length: int | None = None,
    on_task: Callable[[str, Score], None] | None = None,
) -> SuiteScores:
    """Score every task of a suite; `on_task(name, score)` is called after each. Else as `score_task`."""
    options = {"max_tokens_per_batch": max_tokens_per_batch, "max_length": max_length}
    scores: dict[str, dict[str, Score]] = {}
    for group, tasks in suite.groups().items():
        scores[group] = {}
        for task in tasks:
            score = scores[group][task.name] = score_task(model, tokenizer, task, **options)
            if on_task is not None:
                on_task(task.name, score)
    return SuiteScores.of(scores)


def score_task(
    model: nn.Module, tokenizer: Any, task: Task, *, max_tokens_per_batch: int = 4096, max_length: int | None = None
) -> Score:
    """Score a task without generating: the model reads each answer and tells its probability.

    - choice: the choice with the least mean NLL per token is the model's answer (normalised by length);
      accuracy, and likelihood of the gold choices.
    - continuation, response: likelihood = exp(-sum of NLL / sum of tokens) over the answers' tokens, and exact, the
      fraction of items whose every answer token, of a response the end of turn too, is the most probable one: greedy
      decoding would write precisely that answer, so this is exact match under greedy decoding.

    Batches of at most `max_tokens_per_batch` tokens, padding counted, run under no_grad in evaluation mode; the
    training mode of each module is restored. Only positions that predict an answer token reach the head, and their
    logits [positions, vocabulary] are normalised in fp32, at most 256 MiB at once. Rows above `max_length` tokens
    (default: the model's max_position_embeddings) lose the begin of a query or context, or the end of a response.

    Raises CofituneError for an answer longer than `max_length` or without tokens, and for log-likelihoods that are
    not finite.
    """
    if max_length is None:
        max_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if task.kind == "response":
        rows: list[Encoded] = encode_examples(task.items, tokenizer, max_length)
    elif task.kind == "choice":
        rows = [
            row for item in task.items for row in _encode_choices(item, tokenizer, task.chat or item.chat, max_length)
        ]
    else:
        rows = [
            _encode_answers(
                item.context, [item.continuation], tokenizer, task.chat or item.chat, max_length, item.where
            )[0]
            for item in task.items
        ]
    answers = answer_scores(model, rows, pad_token_id(tokenizer), max_tokens_per_batch)
    if task.kind == "choice":
        return make_score(_choice_scores(task.items, answers), task.primary, "accuracy")
    if len(answers) < 2:
        raise CofituneError(
            f"Of the task {task.name} fewer than 2 items fit into {max_length} tokens; raise the limit."
        )
    return make_score(answers, task.primary, "exact")


def answer_scores(
    model: nn.Module, rows: Sequence[Encoded], pad_token_id: int, max_tokens_per_batch: int = 4096
) -> list[ItemScore]:
    """For each row: summed NLL of its response, number of response tokens, and whether all are the most probable.

    What rows share from their begin on is computed once (`data.packing`), where the attention takes a mask for it.
    """
    packable = takes_packs(model, max(len(row.input_ids) for row in rows))
    results = _packed_results if packable else _padded_results
    scores: list[ItemScore | None] = [None] * len(rows)
    with evaluation_mode(model), torch.no_grad():
        for index, nll, hit in results(model, rows, pad_token_id, max_tokens_per_batch):
            if not nll.isfinite().all():
                raise CofituneError(
                    f"The model gives {rows[index].where or 'an item'} a log-likelihood that is not finite; "
                    "its weights may be damaged."
                )
            scores[index] = ItemScore(nll.sum().item(), len(nll), bool(hit.all()))
    return scores


def _packed_results(
    model: nn.Module, rows: Sequence[Encoded], pad_token_id: int, max_tokens: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    weight = model.get_input_embeddings().weight
    packs = pack_rows(rows)
    for indices in plan_batches([len(pack.ids) for pack in packs], max_tokens=max_tokens):
        chosen = [packs[index] for index in indices]
        batch = collate_packs(chosen, pad_token_id, weight.dtype)
        mask = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        for number, pack in enumerate(chosen):
            mask[number, [place for _, predictors, _ in pack.rows for place in predictors]] = True
        with select_positions(model, mask):
            batch = {name: tensor.to(weight.device) for name, tensor in batch.items()}
            logits = model(**batch, use_cache=False).logits[0]
        # The same place may predict the first token of several answers, so places are looked up, not walked through.
        where = mask.flatten().cumsum(0).view(mask.shape) - 1
        places, targets, sizes = [], [], []
        for number, pack in enumerate(chosen):
            for _, predictors, response in pack.rows:
                places.append(where[number, predictors])
                targets += response
                sizes.append(len(response))
        nlls, hits = token_scores(logits, torch.tensor(targets), torch.cat(places))
        numbers = (index for pack in chosen for index, _, _ in pack.rows)
        yield from zip(numbers, nlls.split(sizes), hits.split(sizes), strict=True)


def _padded_results(
    model: nn.Module, rows: Sequence[Encoded], pad_token_id: int, max_tokens: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    device = model.get_input_embeddings().weight.device
    for indices, batch in batches(rows, pad_token_id, max_tokens=max_tokens):
        logits, targets = response_logits(model, {name: tensor.to(device) for name, tensor in batch.items()})
        nlls, hits = token_scores(logits, targets, torch.arange(len(targets)))
        counts = (batch["labels"] != IGNORED_LABEL).sum(1).tolist()
        yield from zip(indices, nlls.split(counts), hits.split(counts), strict=True)


def token_scores(logits: Tensor, targets: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """NLL (float64 [N]) of targets [N] under logits[places], and whether each is the most probable; both on the CPU.

    logits: [positions, vocabulary], normalised in fp32 in chunks. places: [N], rows of logits, in any order.
    """
    chunk = max(1, CHUNK_BYTES // (2 * 4 * logits.shape[-1]))  # two of fp32: the logits and their log-softmax
    nlls, hits = [], []
    for rows, wanted in zip(places.to(logits.device).split(chunk), targets.to(logits.device).split(chunk), strict=True):
        part = logits[rows]
        nlls.append(nn.functional.cross_entropy(part.float(), wanted, reduction="none").cpu().double())
        hits.append((part.argmax(-1) == wanted).cpu())
    return torch.cat(nlls), torch.cat(hits)


def _encode_choices(item: ChoiceItem, tokenizer: Any, chat: bool, max_length: int | None) -> list[Encoded]:
    return _encode_answers(item.query, item.choices, tokenizer, chat, max_length, item.where)


def _encode_answers(
    query: str, answers: Sequence[str], tokenizer: Any, chat: bool, max_length: int | None, where: str
) -> list[Encoded]:
    """The query with each answer; in plain text a space joins them, unless the query ends with a newline or tab."""
    if chat:
        messages = [{"role": "user", "content": query}]
        text, query_ids = prompt_text(tokenizer, messages), encode_prompt(tokenizer, messages)
    else:
        # a space belongs to the token after it in the tokenizers of the field
        text = query.rstrip(" ")
        answers = [answer if text[-1:].isspace() else f" {answer}" for answer in answers]
        query_ids = encode_text(tokenizer, text)
    rows = []
    for answer in answers:
        ids = encode_continuation(tokenizer, text, answer)
        room = max_length - len(ids) if max_length is not None else len(query_ids)
        if not ids or not query_ids or room < 1:
            raise CofituneError(
                f"{where or 'An item'} has {len(query_ids)} tokens before an answer of {len(ids)}; "
                f"both need at least one, and together at most {max_length}."
            )
        kept = query_ids[-room:]
        rows.append(Encoded(kept + ids, len(kept), where))
    return rows


def _choice_scores(items: Sequence[ChoiceItem], answers: Sequence[ItemScore]) -> list[ItemScore]:
    scores, start = [], 0
    for item in items:
        choices = answers[start : start + len(item.choices)]
        start += len(item.choices)
        means = [choice.nll / choice.tokens for choice in choices]
        gold = choices[item.gold]
        scores.append(ItemScore(gold.nll, gold.tokens, means.index(min(means)) == item.gold))
    return scores
