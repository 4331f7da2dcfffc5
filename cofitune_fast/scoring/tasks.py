"""Tasks of four kinds, read from data files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from ..data import Example, Row, parse_examples, read_rows
from ..errors import CofituneError

ResponseMetric = Literal["likelihood", "exact", "bleu", "chrf", "rouge_l", "exact_answer", "last_number"]
METRICS = {
    "choice": ("accuracy", "likelihood"),
    "continuation": ("likelihood", "exact"),
    "response": get_args(ResponseMetric),
    "instruction": ("prompt_level_strict_acc", "inst_level_loose_acc", "inst_level_strict_acc",
                    "prompt_level_loose_acc"),
}
"""Metrics that can be a task's value, by kind of task. The first is the primary one.

Those of instructions (IFEval) have lm-eval's names.
"""

GENERATED = METRICS["response"][2:] + METRICS["instruction"]
"""Metrics that need generated text."""

_SPLITS = ("train", "valid", "validation", "dev", "test", "eval")


@dataclass(frozen=True)
class ChoiceItem:
    """A query and its possible answers. `choices[gold]` is the right one. chat: as in Task."""

    query: str
    choices: tuple[str, ...]
    gold: int
    where: str = ""
    chat: bool = False


@dataclass(frozen=True)
class ContinuationItem:
    """A text and its continuation. chat: as in Task."""

    context: str
    continuation: str
    where: str = ""
    chat: bool = False


@dataclass(frozen=True)
class InstructionItem:
    """A prompt with instructions that a program can check (IFEval): their ids, and the arguments of each id."""

    prompt: str
    instructions: tuple[str, ...]
    arguments: tuple[Mapping[str, Any], ...]
    where: str = ""


Item = ChoiceItem | ContinuationItem | Example | InstructionItem


@dataclass(frozen=True)
class Task:
    """Items of one kind that are scored together.

    kind: "choice" (ChoiceItem), "continuation" (ContinuationItem), "response" (Example) or "instruction"
        (InstructionItem).
    chat: the query of a choice, or the context of a continuation, is rendered as a user turn through the chat template,
        and the answer is scored as the assistant's turn. It can also be set for a single item.
    metric: replaces the kind's primary metric, see METRICS.
    max_new_tokens: limit for a generated response (None: 256, and 1280 for instructions).
    """

    name: str
    kind: str
    items: Sequence[Item] = field(repr=False)
    chat: bool = False
    metric: str | None = None
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in METRICS:
            raise CofituneError(f"The task {self.name} has the unknown kind {self.kind!r}; use {_either(METRICS)}.")
        if self.metric is not None and self.metric not in METRICS[self.kind]:
            raise CofituneError(
                f"The task {self.name} asks for the metric {self.metric!r}; "
                f"a {self.kind} task has {_either(METRICS[self.kind])}."
            )
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise CofituneError(
                f"The task {self.name} has max_new_tokens {self.max_new_tokens}; it must be at least 1."
            )
        if len(self.items) < 2:
            raise CofituneError(
                f"The task {self.name} has {len(self.items)} item(s); a score with a standard error needs at least 2."
            )

    @property
    def primary(self) -> str:
        return self.metric or METRICS[self.kind][0]

    @property
    def is_generated(self) -> bool:
        return self.primary in GENERATED


def join(query: str, answers: Sequence[str]) -> tuple[str, list[str]]:
    """Return the text before the answers, and each answer as it follows there in plain text.

    One blank stands between the two, whether the query ends with it, the answer begins with it, both or neither. It
    belongs to the answer, as in most tokenizers a blank is part of the token after it. Where a query ends, or an answer
    begins, with a newline or other whitespace, that stands alone. Blanks at the end of an answer are dropped.
    """
    text = query.rstrip(" ")
    whole = text == query and text[-1:].isspace()
    return text, [
        answer.rstrip(" ") if whole or answer.lstrip(" ")[:1].isspace() else " " + answer.strip(" ")
        for answer in answers
    ]


class NeedsGeneration(CofituneError):
    """Error for a data file whose task cannot be scored without generating text."""


def read_task(
    path: str | Path,
    *,
    name: str | None = None,
    limit: int | None = None,
    chat: bool = False,
    metric: str | None = None,
    max_new_tokens: int | None = None,
    generate: bool = False,
) -> Task:
    """Read a task from the first `limit` rows (None: all) of a data file. The fields determine the kind:

    - query, choices, gold: choice (gold is the index of the right choice, from 0);
    - context, continuation: continuation. In these two kinds a row can set `"chat": true`, see Task;
    - prompt, instruction_id_list, kwargs (IFEval): instruction, only with `generate`;
    - any format of training data, see `cofitune_fast.data.read_examples`: response.

    The name is that of the file, or folder-file for names such as test.jsonl. Raises CofituneError for bad rows, and
    its subclass NeedsGeneration for an IFEval file without `generate`.
    """
    path = Path(path)
    rows = read_rows(path, limit)
    fields = rows[0].fields
    name = name or (f"{path.parent.name}-{path.stem}" if path.stem in _SPLITS and path.parent.name else path.stem)
    if "instruction_id_list" in fields:
        if not generate:
            raise NeedsGeneration(
                f"{path} holds instructions whose answers must be generated (IFEval); ask for it with generate: true."
            )
        needs_packages("IFEval", "lm_eval", "langdetect", "immutabledict", "nltk")
        return Task(name, "instruction", [_instruction(row) for row in rows], chat, metric, max_new_tokens)
    if "choices" in fields or "gold" in fields:
        return Task(name, "choice", [_choice(row) for row in rows], chat, metric)
    if "context" in fields and "continuation" in fields:
        return Task(name, "continuation", [_continuation(row) for row in rows], chat, metric)
    if metric in GENERATED:
        needs_packages(f"The metric {metric}", "sacrebleu", "rouge_score")
    return Task(name, "response", parse_examples(rows), chat, metric, max_new_tokens)


def needs_packages(what: str, *names: str) -> None:
    """Raise CofituneError unless all these packages are installed. Call it before expensive work."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise CofituneError(f"{what} needs {', '.join(missing)}: pip install 'cofitune-fast[eval]'.")


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


def _instruction(row: Row) -> InstructionItem:
    ids, arguments = row.fields.get("instruction_id_list"), row.fields.get("kwargs")
    if not isinstance(ids, list) or not ids or not all(isinstance(name, str) for name in ids):
        raise CofituneError(f"{row.where} needs a list of at least one name as 'instruction_id_list'.")
    if not isinstance(arguments, list) or not all(isinstance(entry, dict) for entry in arguments) \
            or len(arguments) != len(ids):
        raise CofituneError(f"{row.where} needs a list of {len(ids)} mappings as 'kwargs', one for each instruction.")
    return InstructionItem(_text(row, "prompt"), tuple(ids), tuple(arguments), row.where)


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
