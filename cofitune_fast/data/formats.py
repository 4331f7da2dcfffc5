"""Parse the common formats of training data into prompts and responses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .faults import Faults, OnBadRow, RowFault
from .messages import (
    CONVERSATIONS,
    ROLES,
    THOUGHTS,
    Message,
    Turn,
    message,
    read_tools,
    read_turns,
    without_first_answer,
)
from .row import Row, is_blank, is_missing, parsed
from .rows import collect_rows
from .unread import HARMLESS_FIELDS, NOT_FOR_SFT, refuse_other_training, tell_unread

__all__ = ["FORMS", "ROLES", "Example", "Examples", "Form", "Message", "detect_form", "parse_examples", "read_examples"]


@dataclass(frozen=True)
class Example:
    """One response to learn or to score, with the messages `{"role", "content"}` before it.

    Attributes:
        where: its source, "file:line" or "file:row N".
        references: all acceptable responses, if the data list them.
        tools: definitions of the tools that the model may call, as the chat template takes them.
        also: further keys of the response's message: "reasoning_content", "tool_calls", "name".
    """

    prompt: list[Message]
    response: str
    where: str = ""
    references: tuple[str, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    also: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answer(self) -> Message:
        """The response as a message of the assistant."""
        return {"role": "assistant", "content": self.response, **self.also}


class Examples(list[Example]):
    """Examples of a file.

    Attributes:
        faults: the rows that were left out, and those that were read with a change.
        rows: number of rows that were read, good and bad.
    """

    def __init__(self, examples: Iterable[Example] = (), faults: Faults | None = None, rows: int = 0):
        super().__init__(examples)
        self.faults, self.rows = Faults() if faults is None else faults, rows


@dataclass(frozen=True)
class Form:
    """Format of a row: the fields that it requires, its parser, and all fields that the parser reads."""

    name: str
    required: tuple[str, ...]
    parse: Callable[[Row, Faults], list[Example]]
    reads: frozenset[str]


def read_examples(path: str | Path, limit: int | None = None, on_bad_row: OnBadRow = "stop") -> Examples:
    """Read the first `limit` rows (None: all) of training examples; see `read_rows` for the kinds of files.

    The fields of a row decide its format, tried in this order:

    - messages: a list of {"role", "content"}. Each assistant turn is an Example, with all turns before it as prompt;
    - conversations (ShareGPT), conversation: the same with {"from", "value"}, and optionally "system" beside it;
    - prompt, completion: strings or lists of messages;
    - instruction, and output, response, answer or completion (Alpaca, Dolly): optionally input or context, which
      follows the instruction;
    - a pair whose names say what they are, such as question and answer: see PAIRS.

    Any row may have system, tools, and, if it has one response to learn, references (a list of strings) and a thought
    ("reasoning_content", "reasoning" or "thinking"). All but the first two forms may have history (a list of
    [prompt, response] pairs). Another field that plainly belongs to the prompt, such as a context, makes the row a bad
    one; so do options. What else holds text is left out, and recorded in `Examples.faults.changed`. In CSV every value
    is a string, and a cell for a list holds the list as JSON. See `read_turns` for the keys of a message.

    Args:
        on_bad_row: "skip" leaves bad rows out of the first `limit` rows, and logs how many there are of each kind.

    Raises:
        CofituneError: the data cannot be read, or rows are bad, all counted in one sentence; no row is good.
    """
    faults = Faults(on_bad_row)
    return _parse(collect_rows(path, limit, faults), faults)


def parse_examples(rows: Sequence[Row], on_bad_row: OnBadRow = "stop") -> Examples:
    """Parse rows in the formats of `read_examples`.

    Raises:
        CofituneError: rows are bad, see `read_examples`.
    """
    return _parse(rows, Faults(on_bad_row))


def _parse(rows: Sequence[Row], faults: Faults) -> Examples:
    """Parse rows; `faults` already holds those that could not be read."""
    count, good = len(rows) + len(faults), 0
    examples = Examples(faults=faults, rows=count)
    for row in rows:
        try:
            examples.extend(parse_row(row, faults))
        except RowFault as fault:
            faults.add(fault)
        else:
            good += 1
    faults.settle(count, good)
    return examples


def parse_row(row: Row, faults: Faults) -> list[Example]:
    """Parse one row; changes that its parser makes are recorded in `faults`.

    Raises:
        RowFault: the row cannot be used.
    """
    written, row = row, _with_plain_names(row)
    if not row.fields.keys().isdisjoint(NOT_FOR_SFT):
        refuse_other_training(row)
    form = _form(row)
    examples = form.parse(row, faults)
    unread = row.fields.keys() - form.reads - HARMLESS_FIELDS
    if unread:
        tell_unread(row, form.required, sorted(unread), examples[0].prompt, examples[0].response, faults, written)
    return examples


def detect_form(row: Row) -> Form:
    """Return the format of a row. Raises RowFault if it has none that is known."""
    return _form(_with_plain_names(row))


def _with_plain_names(row: Row) -> Row:
    """Return a row with its names in lower case, unless two of them would be the same."""
    if row.fields.keys() <= _KNOWN:
        return row
    plain = {str(name).strip().lower(): value for name, value in row.fields.items()}
    return row._replace(fields=plain) if len(plain) == len(row.fields) else row


def _form(row: Row) -> Form:
    fields = row.fields
    for form in FORMS:
        if form.required[0] in fields and not is_missing(fields.get(form.required[-1])):
            return form
    for form in FORMS:
        if all(name in fields for name in form.required):
            return form
    if "text" in fields or "input_ids" in fields:
        name = "text" if "text" in fields else "input_ids"
        raise row.fault(f"{name!r} alone", f"has {name!r} alone, as for pre-training, and here responses are trained; "
                                           "write what is given as prompt and what is to be learnt as completion.")
    shown = _quoted(list(fields)[:8]) + (" ..." if len(fields) > 8 else "")
    known = dict(reversed([(form.name, form) for form in FORMS[: -len(PAIRS)]]))
    forms = "; ".join(f"{name} ({', '.join(form.required)})" for name, form in reversed(known.items()))
    raise row.fault("fields of no known form", f"has the fields {shown}, which is none of the known forms: {forms}; or "
                                               "a pair such as question and answer.")


def _parse_messages(row: Row, faults: Faults, name: str) -> list[Example]:
    if row.has("history"):
        raise row.fault(f"a history beside {name}", f"has 'history' beside {name!r}; write the earlier turns into "
                                                    f"{name!r}.")
    turns = read_turns(row, name, faults)
    system = _system(row)
    if system and turns[0].message["role"] not in ("system", "developer"):
        turns = [*system, *turns]
    elif system and turns[0].message["content"].strip() != system[0].message["content"].strip():
        raise row.fault("two system prompts", f"has a system prompt beside {name!r} and another one in it; keep one.")
    return _assistant_turns(turns, row, faults)


def _parse_prompt_completion(row: Row, faults: Faults, names: tuple[str, str] = ("prompt", "completion")
                             ) -> list[Example]:
    prompt = [*_system(row), *_history(row), *_text_or_turns(row, names[0], "user", faults)]
    completion = _text_or_turns(row, names[1], "assistant", faults)
    return _assistant_turns(without_first_answer(prompt, row, faults), row, faults, completion)


def _parse_alpaca(row: Row, faults: Faults, names: tuple[str, str]) -> list[Example]:
    additions = [text for name in ("input", "context") if (text := row.text(name, empty=True)).strip()]
    if row.has("input") and not row.has(names[0]):
        faults.change(f"the input as the question, as the {names[0]} is empty", row.where)
    else:
        additions.insert(0, row.text(names[0]))
    prompt = [*_system(row), *_history(row), Turn(message("user", "\n".join(additions)))]
    return _assistant_turns(prompt, row, faults, [Turn(message("assistant", row.text(names[1])))])


_ALPACA = tuple(("instruction", name) for name in ("output", "response", "answer", "completion"))
PAIRS = (
    ("prompt", "response"), ("question", "solution"), ("question", "answer"), ("question", "response"),
    ("query", "response"), ("problem", "solution"), ("problem", "answer"), ("query", "answer"), ("input", "output"),
    ("inputs", "targets"), ("input", "target"), ("source", "target"), ("prompt", "output"), ("prompt", "answer"),
)
"""Names of a prompt and its response that are read where a row has no other form, the first that fits."""

_SYSTEMS = ("system", "system_prompt", "system_message")
_BESIDE = frozenset((*_SYSTEMS, *THOUGHTS, "references", "history", "tools", "functions"))

FORMS = (
    *(Form(name, (name,), partial(_parse_messages, name=name), _BESIDE | {name}) for name in CONVERSATIONS),
    Form("prompt/completion", ("prompt", "completion"), _parse_prompt_completion,
         _BESIDE | {"prompt", "completion"}),
    *(Form("Alpaca", names, partial(_parse_alpaca, names=names), _BESIDE | {*names, "input", "context"})
      for names in _ALPACA),
    *(Form("/".join(names), names, partial(_parse_prompt_completion, names=names), _BESIDE | {*names})
      for names in PAIRS),
)

_SWITCHES = ("on", "off", "true", "false")  # whether there was a thought, and no thought
_KNOWN = HARMLESS_FIELDS | NOT_FOR_SFT | {
    "messages", "prompt", "completion", "instruction", "input", "output", "response", "question", "answer", "system",
    "references", "tools",
}


def _assistant_turns(turns: list[Turn], row: Row, faults: Faults, completion: list[Turn] | None = None
                     ) -> list[Example]:
    """Make one Example of each assistant turn to learn: of the completion, or without one of all turns."""
    if completion is None:
        turns = without_first_answer(turns, row, faults)
        start = 0
    else:
        start, turns = len(turns), [*turns, *completion]
    references = _references(row)
    tools = read_tools(row)
    learnt = [turn.message for turn in turns[start:] if turn.message["role"] == "assistant" and turn.learnt]
    if references and len(learnt) > 1:
        raise row.fault("references beside several responses",
                        f"has 'references' beside {len(learnt)} responses, and it is not plain whose they are; write a "
                        "row for each response.")
    if thought := _thought(row):
        _add_thought(thought, turns, learnt, row)
    prompt = [turn.message for turn in turns]
    examples = []
    for position in range(start, len(turns)):
        answer, learnt = turns[position]
        if answer["role"] != "assistant" or not learnt:
            continue
        also = {key: value for key, value in answer.items() if key not in ("role", "content")}
        if is_blank(answer["content"]) and "tool_calls" not in also:
            raise row.fault("an empty response",
                            f"has an empty assistant turn (turn {position - start + 1}); fill it or remove the row.")
        examples.append(Example(prompt[:position], answer["content"], row.where, references, tools, also))
    if not examples:
        which = "that is to be learnt" if any(turn.message["role"] == "assistant" for turn in turns[start:]) else \
            "after another turn"
        raise row.fault("no response to learn",
                        f"has no assistant turn {which}, so there is no response to learn.")
    return examples


def _references(row: Row) -> tuple[str, ...]:
    if not row.has("references"):
        return ()
    return tuple(row.as_text(reference, "has a reference that is not text: 'references' must be a list of strings.",
                             "has in 'references' {}.") for reference in row.list("references"))


def _thought(row: Row) -> str:
    """Return the thought that stands beside the response, else an empty text."""
    thoughts = {row.text(name) for name in THOUGHTS
                if row.has(name) and str(row.fields[name]).strip().lower() not in _SWITCHES}
    if len(thoughts) > 1:
        raise row.fault("two thoughts in a row", "has two different thoughts; keep one of them.")
    return "".join(thoughts)


def _add_thought(thought: str, turns: list[Turn], learnt: list[Message], row: Row) -> None:
    if len(learnt) != 1 or turns[-1].message is not learnt[0]:
        raise row.fault("a thought beside several turns",
                        "has a thought beside its turns, and it is not plain which one it belongs to; write it into "
                        "that turn as reasoning_content.")
    if learnt[0].setdefault("reasoning_content", thought) != thought:
        raise row.fault("two thoughts in a row", "has two different thoughts; keep one of them.")


def _system(row: Row) -> list[Turn]:
    texts = [text for name in _SYSTEMS if name in row.fields and (text := row.text(name, empty=True)).strip()]
    if len({text.strip() for text in texts}) > 1:
        raise row.fault("two system prompts", "has two system prompts that differ; keep one.")
    return [Turn(message("system", text)) for text in texts[:1]]


def _history(row: Row) -> list[Turn]:
    """Read earlier turns: [prompt, response] pairs, or messages."""
    turns: list[Turn] = []
    pairs = row.list("history") if row.has("history") else []
    if pairs and isinstance(pairs[0], dict):
        return read_turns(row, "history")
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise row.fault("a malformed history",
                            "has a 'history' that is not a list of [instruction, output] pairs of text.")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append(Turn(message(role, row.as_text(text, "", "has in 'history' {}."))))
    return turns


def _text_or_turns(row: Row, name: str, role: str, faults: Faults) -> list[Turn]:
    value = row.fields[name]
    if _holds_messages(value, row.cells) if isinstance(value, str) else isinstance(value, list | dict):
        return read_turns(row, name, faults)
    return [Turn(message(role, row.text(name)))]


def _holds_messages(text: str, cell: bool) -> bool:
    """Whether a text is a list of messages written as JSON; in a cell of a table also one whose JSON is broken."""
    if not text.startswith("["):
        return False
    start = text[:40].replace(" ", "").replace("'", '"')
    begins = start.startswith(('[{"role":', '[{"content":', '[{"from":', '[{"value":'))
    return begins and (cell or isinstance(parsed(text), list))


def _quoted(names: Iterable[Any]) -> str:
    return ", ".join(repr(name) for name in names)
