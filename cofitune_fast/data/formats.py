"""Parse the common formats of training data into prompts and responses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .faults import Faults, OnBadRow, RowFault
from .messages import ROLES, THOUGHTS, Message, Turn, message, read_tools, read_turns, without_first_answer
from .row import Row, is_blank
from .rows import collect_rows

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
    """Format of a row: the fields that it requires, and its parser."""

    name: str
    required: tuple[str, ...]
    parse: Callable[[Row, Faults], list[Example]]


def read_examples(path: str | Path, limit: int | None = None, on_bad_row: OnBadRow = "stop") -> Examples:
    """Read the first `limit` rows (None: all) of training examples; see `read_rows` for the kinds of files.

    The fields of a row decide its format, tried in this order:

    - messages: a list of {"role", "content"}. Each assistant turn is an Example, with all turns before it as prompt;
    - conversations (ShareGPT), conversation: the same with {"from", "value"}, and optionally "system" beside it;
    - prompt, completion: strings or lists of messages;
    - instruction, output or response (Alpaca, Dolly): optionally input or context, which follows the instruction;
    - a pair whose names say what they are, such as question and answer: see PAIRS.

    All but the first two may have references (a list of strings), system, history (a list of [prompt, response]
    pairs) and a thought ("reasoning_content", "reasoning" or "thinking"). Any row may have tools. In CSV every value is
    a string, and a cell for a list holds the list as JSON. See `read_turns` for the keys of a message.

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
    if not row.fields.keys().isdisjoint(_NOT_FOR_SFT):
        _refuse_other_training(row)
    form, row = _form(row)
    return form.parse(row, faults)


def detect_form(row: Row) -> Form:
    """Return the format of a row. Raises RowFault if it has none that is known."""
    return _form(row)[0]


def _form(row: Row) -> tuple[Form, Row]:
    """Return the format of a row, and the row, its names in lower case if it has none as they are written."""
    fields = row.fields
    for form in FORMS:
        if form.required[0] in fields and fields.get(form.required[-1]) is not None:
            return form, row
    for form in FORMS:
        if all(name in fields for name in form.required):
            return form, row
    plain = {str(name).strip().lower(): value for name, value in fields.items()}
    if plain.keys() != fields.keys() and len(plain) == len(fields):
        return _form(Row(plain, row.where))
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
    if len(completion) == 1 and completion[0].message["role"] == "assistant":
        for key, thought in _thought(row).items():
            completion[0].message.setdefault(key, thought)
    return _assistant_turns(without_first_answer(prompt, row, faults), row, faults, completion)


def _parse_alpaca(row: Row, faults: Faults, names: tuple[str, str]) -> list[Example]:
    question = row.text(names[0])
    addition = "\n".join(text for name in ("input", "context") if (text := row.text(name, empty=True)).strip())
    prompt = [*_system(row), *_history(row), Turn(message("user", f"{question}\n{addition}" if addition else question))]
    answer = Turn({**message("assistant", row.text(names[1])), **_thought(row)})
    return _assistant_turns(prompt, row, faults, [answer])


def _parse_pair(row: Row, faults: Faults, names: tuple[str, str]) -> list[Example]:
    unclear = [name for name in _CONTEXTS if name not in names and row.has(name)]
    if unclear:
        raise row.fault(f"a field {unclear[0]!r} beside {names[0]} and {names[1]}",
                        f"has {_quoted(unclear)} beside {names[0]!r} and {names[1]!r}, and it is not plain where that "
                        "belongs; write the whole prompt as prompt and the response as completion.")
    return _parse_prompt_completion(row, faults, names)


_ALPACA = (("instruction", "output"), ("instruction", "response"))
PAIRS = (
    ("prompt", "response"), ("question", "answer"), ("question", "response"), ("query", "response"),
    ("problem", "solution"), ("question", "solution"), ("problem", "answer"), ("query", "answer"), ("input", "output"),
    ("inputs", "targets"), ("input", "target"), ("source", "target"), ("prompt", "output"), ("prompt", "answer"),
)
"""Names of a prompt and its response that are read where a row has no other form, the first that fits."""

FORMS = (
    *(Form(name, (name,), partial(_parse_messages, name=name)) for name in ("messages", "conversations",
                                                                           "conversation")),
    Form("prompt/completion", ("prompt", "completion"), _parse_prompt_completion),
    *(Form("Alpaca", names, partial(_parse_alpaca, names=names)) for names in _ALPACA),
    *(Form("/".join(names), names, partial(_parse_pair, names=names)) for names in PAIRS),
)

_CONTEXTS = ("context", "input", "passage", "document", "article", "choices", "options", "instruction")
_PREFERENCES = ("rejected", "rejected_response", "rejected_messages", "rejected_output", "non_preferred_output",
                "chosen", "chosen_response", "preferred_output")
_VERDICTS = ("label", "kto_tag")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_WEIGHTS = ("weight", "loss_weight", "sample_weight", "loss_mask")
_NOT_FOR_SFT = {*_PREFERENCES, *_VERDICTS, *_MEDIA, *_WEIGHTS}


def _refuse_other_training(row: Row) -> None:
    """Raise RowFault for rows of another kind of training, which would mean something else as prompt and response."""
    given = {name: row.fields[name] for name in _NOT_FOR_SFT if row.has(name)}
    preferences = [name for name in _PREFERENCES if name in given]
    if preferences:
        better = next((name for name in preferences if "rejected" not in name and "non_" not in name), "chosen")
        raise row.fault("preferences instead of a response",
                        f"has preferences ({', '.join(preferences)}), as for DPO, and here one response is trained; "
                        f"take {better!r} as the completion and remove the other.")
    for name in _VERDICTS:
        if isinstance(given.get(name), bool) or str(given.get(name, "")).strip().lower() in ("true", "false"):
            raise row.fault("a verdict on the response",
                            f"has a verdict ({name!r}), as for KTO, and here responses are learnt; keep the rows in "
                            f"which it is true, and remove {name!r}.")
    for name in _MEDIA:
        if name in given:
            raise row.fault("images, audio or video", f"has {name!r}; only text is trained.")
    for name in _WEIGHTS:
        if name in given and str(given[name]).strip() not in ("1", "1.0"):
            raise row.fault("a weight of its own", f"has {given[name]!r} as {name!r}; all rows count alike here, so "
                                                   f"remove {name!r}, and the rows that are not to be learnt.")


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


def _thought(row: Row) -> dict[str, str]:
    for name in THOUGHTS:
        if row.has(name):
            return {"reasoning_content": row.text(name)}
    return {}


def _system(row: Row) -> list[Turn]:
    for name in ("system", "system_prompt"):
        text = row.text(name, empty=True) if name in row.fields else ""
        if text.strip():
            return [Turn(message("system", text))]
    return []


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
    if _holds_messages(value) if isinstance(value, str) else isinstance(value, list | dict):
        return read_turns(row, name, faults)
    return [Turn(message(role, row.text(name)))]


def _holds_messages(text: str) -> bool:
    """Whether a text, such as a cell of a table, is a list of messages written as JSON."""
    if not text.startswith("["):
        return False
    start = text[:40].replace(" ", "").replace("'", '"')
    return start.startswith(('[{"role":', '[{"content":', '[{"from":', '[{"value":'))


def _quoted(names: Iterable[Any]) -> str:
    return ", ".join(repr(name) for name in names)
