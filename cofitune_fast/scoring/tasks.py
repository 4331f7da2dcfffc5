"""Tasks of four kinds, read from data files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from ..data import Example, Faults, Row, RowFault
from ..data.decode import COMPRESSED
from ..data.faults import OnBadRow
from ..data.formats import parse_row
from ..data.row import parsed
from ..data.rows import collect_rows
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
    notes: sentences about rows that were left out or read with a change.
    """

    name: str
    kind: str
    items: Sequence[Item] = field(repr=False)
    chat: bool = False
    metric: str | None = None
    max_new_tokens: int | None = None
    notes: tuple[str, ...] = ()

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
                " ".join((f"The task {self.name} has {len(self.items)} item(s); a score with a standard error needs at "
                          "least 2.", *self.notes))
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
    on_bad_row: OnBadRow = "stop",
) -> Task:
    """Read a task from the first `limit` rows (None: all) of data; see `data.read_rows` for the kinds of files.

    The fields of most rows determine the kind:

    - query, choices, gold: choice (gold is the index of the right choice, from 0);
    - context, continuation: continuation. In these two kinds a row can set `"chat": true`, see Task;
    - prompt, instruction_id_list, kwargs (IFEval): instruction, only with `generate`;
    - any format of training data, see `cofitune_fast.data.read_examples`: response.

    In CSV a cell for a list holds it as JSON, gold is a number and chat is true or false.

    The name is that of the file, or folder-file for names such as test.jsonl.

    Args:
        on_bad_row: "skip" leaves bad rows out, so that the score is one of fewer items; the task's notes say so.

    Raises:
        NeedsGeneration: an IFEval file without `generate`.
        CofituneError: the data cannot be read, or rows are bad, all counted in one sentence.
    """
    path, faults = Path(path), Faults(on_bad_row)
    rows = collect_rows(path, limit, faults)
    stem = Path(path.stem).stem if path.suffix.lower() in COMPRESSED else path.stem
    name = name or (f"{path.parent.name}-{stem}" if stem in _SPLITS and path.parent.name else stem)
    kinds = [_kind(row) for row in rows]
    kind = Counter(kinds).most_common(1)[0][0] if kinds else "response"
    if kind == "instruction":
        if not generate:
            raise NeedsGeneration(
                f"{path} holds instructions whose answers must be generated (IFEval); ask for it with generate: true."
            )
        needs_packages("IFEval", "lm_eval", "langdetect", "immutabledict", "nltk")
    elif kind == "response" and metric in GENERATED:
        needs_packages(f"The metric {metric}", "sacrebleu", "rouge_score")
    items: list[Item] = []
    count, good = len(rows) + len(faults), 0
    for row, its in zip(rows, kinds, strict=True):
        try:
            if its != kind:
                raise row.fault(f"the fields of a {its} task",
                                f"has the fields of a {its} task, and most rows of the file are of a {kind} task; give "
                                "it a file of its own.")
            items += parse_row(row, faults) if kind == "response" else [_PARSERS[kind](row)]
        except RowFault as fault:
            faults.add(fault)
        else:
            good += 1
    faults.settle(count, good)
    return Task(name, kind, items, chat, metric, None if kind in ("choice", "continuation") else max_new_tokens,
                tuple(faults.notes))


def needs_packages(what: str, *names: str) -> None:
    """Raise CofituneError unless all these packages are installed. Call it before expensive work."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise CofituneError(f"{what} needs {', '.join(missing)}: pip install 'cofitune-fast[eval]'.")


def _kind(row: Row) -> str:
    """Name the kind of task that the fields of a row are of."""
    fields = row.fields
    if fields.get("instruction_id_list") is not None:
        return "instruction"
    if fields.get("choices") is not None or fields.get("gold") is not None:
        return "choice"
    return "continuation" if "context" in fields and "continuation" in fields else "response"


def _choice(row: Row) -> ChoiceItem:
    query = _text(row, "query")
    choices = parsed(row.fields.get("choices"))
    if not isinstance(choices, list) or len(choices) < 2:
        raise row.fault("too few choices", "needs a list of at least 2 texts as 'choices' (in CSV, written as JSON).")
    words = "has a choice that is empty or not text."
    texts = tuple(row.as_text(choice, words, "has in a choice {}.") for choice in choices)
    if not all(map(str.strip, texts)):
        raise row.fault("an empty choice", words)
    return ChoiceItem(query, texts, _gold(row, len(texts)), row.where, _chat(row))


def _gold(row: Row, count: int) -> int:
    """Read the index of the right choice: a whole number, or its text as in CSV."""
    given = row.fields.get("gold")
    try:
        number = -1.0 if given is None or isinstance(given, bool) else float(given)
        gold = int(number)
        valid = 0 <= gold < count and gold == number
    except (ValueError, TypeError, OverflowError):
        gold, valid = -1, False
    if not valid:
        raise row.fault("a gold that is no choice",
                        f"has {given!r} as 'gold'; it must be a whole number from 0 to {count - 1}.")
    return gold


def _continuation(row: Row) -> ContinuationItem:
    return ContinuationItem(_text(row, "context"), _text(row, "continuation"), row.where, _chat(row))


def _instruction(row: Row) -> InstructionItem:
    ids, arguments = parsed(row.fields.get("instruction_id_list")), parsed(row.fields.get("kwargs"))
    if not isinstance(ids, list) or not ids or not all(isinstance(name, str) for name in ids):
        raise row.fault("no instructions", "needs a list of at least one name as 'instruction_id_list'.")
    if not isinstance(arguments, list) or not all(isinstance(entry, dict) for entry in arguments) \
            or len(arguments) != len(ids):
        raise row.fault("no arguments of its instructions",
                        f"needs a list of {len(ids)} mappings as 'kwargs', one for each instruction.")
    return InstructionItem(_text(row, "prompt"), tuple(ids), tuple(arguments), row.where)


_PARSERS: dict[str, Callable[[Row], Item]] = {
    "choice": _choice, "continuation": _continuation, "instruction": _instruction,
}


def _chat(row: Row) -> bool:
    given = row.fields.get("chat")
    text = "" if given is None else str(given).strip().lower()
    if text not in ("true", "false", "") or not isinstance(given, bool | str | type(None)):
        raise row.fault("a chat that is neither true nor false", f"has {given!r} as 'chat'; it must be true or false.")
    return text == "true"


def _text(row: Row, name: str) -> str:
    if not row.has(name):
        raise row.fault(f"an empty {name!r}", f"needs a text that is not empty as {name!r}.")
    return row.text(name)


def _either(names: Any) -> str:
    return " or ".join(repr(name) for name in names)
