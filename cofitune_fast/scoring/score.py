"""Scoring by teacher forcing: the probabilities that a model gives to given answers.

Tasks whose metric needs generated text are passed on to `generation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ..data import Encoded, encode_examples, pad_token_id, plan_packs
from ..data.chat import lead, prompt_text
from ..data.encode import collect_encoded, encode_continuation, encode_text, text_ids
from ..data.faults import Faults
from ..errors import CofituneError
from ..memory.cached_prefix import CachedPrefix
from ..progress import progress
from .answers import answer_scores
from .generation import generation_score, generation_tokens
from .results import ItemScore, Score, SuiteScores, make_score
from .suite import Suite
from .tasks import ChoiceItem, Task, join

BATCH_TOKENS = 4096


def score_suite(
    model: nn.Module,
    tokenizer: Any,
    suite: Suite,
    *,
    max_tokens_per_batch: int = BATCH_TOKENS,
    max_length: int | None = None,
    prefix: CachedPrefix | None = None,
    on_task: Callable[[str, Score], None] | None = None,
) -> SuiteScores:
    """Score every task of a suite, and call `on_task(name, score)` after each. Other options: see `score_task`."""
    options = {"max_tokens_per_batch": max_tokens_per_batch, "max_length": max_length, "prefix": prefix}
    scores: dict[str, dict[str, Score]] = {}
    for group, tasks in suite.groups().items():
        scores[group] = {}
        for task in tasks:
            with progress(f"Scoring {task.name}"):
                score = scores[group][task.name] = score_task(model, tokenizer, task, **options)
            if on_task is not None:
                on_task(task.name, score)
    return SuiteScores.of(scores)


def score_task(
    model: nn.Module, tokenizer: Any, task: Task, *, max_tokens_per_batch: int = BATCH_TOKENS,
    max_length: int | None = None, prefix: CachedPrefix | None = None,
) -> Score:
    """Score a task from the probabilities of its answers, without generating.

    A task whose metric needs generated text is scored by `generation_score`.

    - choice: the model's answer is the choice with the lowest mean NLL per token (normalised by length). Metrics are
      accuracy, and likelihood of the gold choices.
    - continuation, response: likelihood = exp(-sum of NLL / sum of tokens) over the answers' tokens. exact is the
      fraction of items of which every answer token is the most probable one, a response's end of turn included. This is
      exact match under greedy decoding.

    Batches have at most `max_tokens_per_batch` tokens, padding included. They run under no_grad in evaluation mode, and
    the training mode of each module is restored. Only positions that predict an answer token go through the head. Their
    logits are normalised in fp32, at most 256 MiB at a time. Rows above `max_length` tokens (default: the model's
    max_position_embeddings) lose the beginning of a query or context, or the end of a response.
    prefix: see `answer_scores`.

    Raises CofituneError for an answer longer than `max_length` or without tokens, and for log-likelihoods that are
    not finite.
    """
    if task.is_generated:
        if prefix is not None:
            prefix.prefix.bring_back()
        return generation_score(model, tokenizer, task)
    max_length = max_length or _longest(model)
    rows = task_rows(task, tokenizer, max_length)
    answers = answer_scores(model, rows, pad_token_id(tokenizer), max_tokens_per_batch, prefix=prefix)
    if task.kind == "choice":
        return make_score(_choice_scores(task.items, answers), task.primary, "accuracy")
    if len(answers) < 2:
        raise CofituneError(
            f"Of the task {task.name} fewer than 2 items fit into {max_length} tokens; raise the limit."
        )
    return make_score(answers, task.primary, "exact")


def task_rows(task: Task, tokenizer: Any, max_length: int | None) -> list[Encoded]:
    """Encode the rows of a task: one per answer, so an item with choices has several."""
    if task.kind == "response":
        return encode_examples(task.items, tokenizer, max_length, needs_thought=False)
    if task.kind == "choice":
        return [
            row for item in task.items for row in _encode_choices(item, tokenizer, task.chat or item.chat, max_length)
        ]
    return [
        _encode_answers(item.context, [item.continuation], tokenizer, task.chat or item.chat, max_length, item.where)[0]
        for item in task.items
    ]


def without_refused(task: Task, tokenizer: Any) -> Task:
    """Return a task without the responses whose rows the chat template refuses; its notes say how many there are.

    Raises:
        CofituneError: fewer than 2 rows are left.
    """
    if task.kind != "response":
        return task
    faults = Faults("skip")
    kept = collect_encoded(task.items, tokenizer, None, faults, needs_thought=False).indices
    return replace(task, items=[task.items[index] for index in kept], notes=(*task.notes, *faults.notes))


def choose_drift_rows(
    model: nn.Module, tokenizer: Any, suite: Suite, count: int, group: str = "instruction"
) -> list[Encoded]:
    """Select the first `count` rows from the tasks of a group that have responses, in equal shares per task."""
    tasks = [task for task in suite.groups()[group] if task.kind == "response"]
    share = math.ceil(count / max(1, len(tasks)))
    return [row for task in tasks for row in task_rows(task, tokenizer, _longest(model))[:share]][:count]


def _longest(model: nn.Module) -> int | None:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def scored_tokens(model: nn.Module, tokenizer: Any, tasks: Iterable[Task]) -> tuple[int, int]:
    """Count (tokens computed in a scoring of the tasks, answer tokens).

    Tokens that rows of a batch share count once. Generated responses count with their maximum length.
    """
    tokens = responses = 0
    for task in tasks:
        if task.is_generated:
            both, written = generation_tokens(task, tokenizer)
            tokens, responses = tokens + both, responses + written
            continue
        rows = task_rows(task, tokenizer, _longest(model))
        tokens += sum(len(pack.ids) for pack in plan_packs(rows, BATCH_TOKENS))
        responses += sum(len(row.input_ids) - row.response_start for row in rows)
    return tokens, responses


def _encode_choices(item: ChoiceItem, tokenizer: Any, chat: bool, max_length: int | None) -> list[Encoded]:
    return _encode_answers(item.query, item.choices, tokenizer, chat, max_length, item.where)


def _encode_answers(
    query: str, answers: Sequence[str], tokenizer: Any, chat: bool, max_length: int | None, where: str
) -> list[Encoded]:
    """Encode the query with each answer.

    In a chat an answer stands where the template puts the content of the assistant's turn, such as after an empty
    thought. In plain text `join` joins query and answer.
    """
    if chat:
        text, blank = up_to_answer(tokenizer, prompt_text(tokenizer, [{"role": "user", "content": query}]))
        answers = [blank + answer for answer in in_turns(query, answers)[1]]
        query_ids = text_ids(tokenizer, text)
    else:
        text, answers = join(query, answers)
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


def in_turns(query: str, answers: Sequence[str]) -> tuple[str, list[str]]:
    """Return the contents of a user's turn and of the assistant's turns after it: blanks around an answer mean nothing.
    """
    return query, [answer.strip(" ") for answer in answers]


def up_to_answer(tokenizer: Any, prompt: str) -> tuple[str, str]:
    """Return a prompt with what the template writes before an answer's content, and the blanks at its end apart.

    In most tokenizers a blank belongs to the token after it.
    """
    before = lead(tokenizer)
    return prompt + before.rstrip(" "), before[len(before.rstrip(" ")) :]


def _choice_scores(items: Sequence[ChoiceItem], answers: Sequence[ItemScore]) -> list[ItemScore]:
    scores, start = [], 0
    for item in items:
        choices = answers[start : start + len(item.choices)]
        start += len(item.choices)
        means = [choice.nll / choice.tokens for choice in choices]
        gold = choices[item.gold]
        scores.append(ItemScore(gold.nll, gold.tokens, means.index(min(means)) == item.gold))
    return scores
