"""What is scored: tasks of three kinds, read from data files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data import Example, Row, parse_examples, read_rows
from ..errors import CofituneError

METRICS = {
    "choice": ("accuracy", "likelihood"),
    "continuation": ("likelihood", "exact"),
    "response": ("likelihood", "exact"),
}
"""The metrics that can be a task's value, by kind of task; the first is the primary one."""

_SPLITS = ("train", "valid", "validation", "dev", "test", "eval")


@dataclass(frozen=True)
class ChoiceItem:
    """A query and its possible answers, of which `choices[gold]` is right; `chat` as in Task."""

    query: str
    choices: tuple[str, ...]
    gold: int
    where: str = ""
    chat: bool = False


@dataclass(frozen=True)
class ContinuationItem:
    """A text and the words that end it; `chat` as in Task."""

    context: str
    continuation: str
    where: str = ""
    chat: bool = False


Item = ChoiceItem | ContinuationItem | Example


@dataclass(frozen=True)
class Task:
    """Items of one kind, to be scored together.

    kind: "choice" (ChoiceItem), "continuation" (ContinuationItem) or "response" (Example). With `chat` the query
    of a choice, or the context of a continuation, is rendered as a user turn through the chat template and the
    answer scored as the assistant's; an item may ask for that itself. `metric` takes the place of the kind's
    primary metric: see METRICS.
    """

    name: str
    kind: str
    items: Sequence[Item] = field(repr=False)
    chat: bool = False
    metric: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in METRICS:
            raise CofituneError(f"The task {self.name} has the unknown kind {self.kind!r}; use {_either(METRICS)}.")
        if self.metric is not None and self.metric not in METRICS[self.kind]:
            raise CofituneError(
                f"The task {self.name} asks for the metric {self.metric!r}; "
                f"a {self.kind} task has {_either(METRICS[self.kind])}."
            )
        if len(self.items) < 2:
            raise CofituneError(
                f"The task {self.name} has {len(self.items)} item(s); a score with a standard error needs at least 2."
            )

    @property
    def primary(self) -> str:
        return self.metric or METRICS[self.kind][0]


class NeedsGeneration(CofituneError):
    """A data file whose task cannot be scored without generating text."""


def read_task(
    path: str | Path,
    *,
    name: str | None = None,
    limit: int | None = None,
    chat: bool = False,
    metric: str | None = None,
) -> Task:
    """Read a task from the first `limit` rows (None: all) of a data file; its fields tell the kind:

    - query, choices, gold: choice (gold is the position of the right choice, from 0);
    - context, continuation: continuation; in both, `"chat": true` in a row is that of Task for this row;
    - any form of training data, see `cofitune_fast.data.read_examples`: response.

    The name is the file's, or folder-file for names such as test.jsonl. Raises CofituneError for bad rows, and its
    subclass NeedsGeneration for a file (IFEval's) whose answers have to be generated.
    """
    path = Path(path)
    rows = read_rows(path, limit)
    fields = rows[0].fields
    name = name or (f"{path.parent.name}-{path.stem}" if path.stem in _SPLITS and path.parent.name else path.stem)
    if "instruction_id_list" in fields:
        raise NeedsGeneration(
            f"{path} holds instructions whose answers must be generated (IFEval); score it elsewhere."
        )
    if "choices" in fields or "gold" in fields:
        return Task(name, "choice", [_choice(row) for row in rows], chat, metric)
    if "context" in fields and "continuation" in fields:
        return Task(name, "continuation", [_continuation(row) for row in rows], chat, metric)
    return Task(name, "response", parse_examples(rows), chat, metric)


def _choice(row: Row) -> ChoiceItem:
    query = _text(row, "query")
    choices, gold = row.fields.get("choices"), row.fields.get("gold")
    if not isinstance(choices, list) or len(choices) < 2:
        raise CofituneError(f"{row.where} needs a list of at least 2 texts as 'choices'.")
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise CofituneError(f"{row.where} has a choice that is empty or not text.")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
        raise CofituneError(
            f"{row.where} has {gold!r} as 'gold'; it must be a whole number from 0 to {len(choices) - 1}."
        )
    return ChoiceItem(query, tuple(choices), gold, row.where, _chat(row))


def _continuation(row: Row) -> ContinuationItem:
    return ContinuationItem(_text(row, "context"), _text(row, "continuation"), row.where, _chat(row))


def _chat(row: Row) -> bool:
    chat = row.fields.get("chat", False)
    if not isinstance(chat, bool):
        raise CofituneError(f"{row.where} has {chat!r} as 'chat'; it must be true or false.")
    return chat


def _text(row: Row, name: str) -> str:
    value = row.fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise CofituneError(f"{row.where} needs a text that is not empty as {name!r}.")
    return value


def _either(names: Any) -> str:
    return " or ".join(repr(name) for name in names)
