"""Parse the common formats of training data into prompts and responses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .faults import Faults, OnBadRow, RowFault
from .messages import (
    HARMLESS,
    ROLES,
    THOUGHTS,
    Message,
    Turn,
    message,
    read_tools,
    read_turns,
    without_first_answer,
    words,
)
from .row import Row, is_blank, is_missing, parsed
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
    if not row.fields.keys().isdisjoint(_NOT_FOR_SFT):
        _refuse_other_training(row)
    form = _form(row)
    examples = form.parse(row, faults)
    unread = row.fields.keys() - form.reads - _HARMLESS
    if unread:
        _tell_unread(row, form, sorted(unread), examples, faults, written)
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
_CONVERSATIONS = ("messages", "conversations", "conversation")

FORMS = (
    *(Form(name, (name,), partial(_parse_messages, name=name), _BESIDE | {name}) for name in _CONVERSATIONS),
    Form("prompt/completion", ("prompt", "completion"), _parse_prompt_completion,
         _BESIDE | {"prompt", "completion"}),
    *(Form("Alpaca", names, partial(_parse_alpaca, names=names), _BESIDE | {*names, "input", "context"})
      for names in _ALPACA),
    *(Form("/".join(names), names, partial(_parse_prompt_completion, names=names), _BESIDE | {*names})
      for names in PAIRS),
)

_CONTEXTS = {"context", "input", "passage", "document", "article", "paragraph", "table", "text", "knowledge",
             "evidence", "hint", "background", "story", "schema", "choice", "option"}
_QUESTIONS = {"instruction", "prompt", "question", "query", "problem"}
_OPTION = re.compile(r"(?:option|choice|op)?[ _-]?[a-e1-5]")  # columns of options, as in A, B, C, D
_SWITCHES = ("on", "off", "true", "false")  # whether there was a thought, and no thought
_ABOUT = {"id", "ids", "idx", "index", "uuid", "hash", "url", "urls", "uri", "link", "license", "date", "time",
          "timestamp", "lang", "language", "split", "model", "source", "type", "category", "length", "count"}
_HARMLESS = HARMLESS | {
    "url", "urls", "uri", "link", "key", "prompt_id", "question_id", "conversation_id", "category", "categories",
    "topic", "topics", "subject", "domain", "type", "kind", "task", "task_name", "dataset", "data_source", "subset",
    "split", "tag", "tags", "difficulty", "level", "license", "author", "generator", "created_at", "version",
    "__index_level_0__",
}
_PREFERENCES = ("rejected", "rejected_response", "rejected_messages", "rejected_output", "non_preferred_output",
                "chosen", "chosen_response", "preferred_output")
_VERDICTS = ("label", "kto_tag")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_WEIGHTS = ("weight", "loss_weight", "sample_weight", "loss_mask")
_NOT_FOR_SFT = {*_PREFERENCES, *_VERDICTS, *_MEDIA, *_WEIGHTS}
_KNOWN = _HARMLESS | _NOT_FOR_SFT | {"messages", "prompt", "completion", "instruction", "input", "output", "response",
                                     "question", "answer", "system", "references", "tools"}


def _tell_unread(row: Row, form: Form, names: list[str], examples: list[Example], faults: Faults, written: Row
                 ) -> None:
    """Record the fields that are left out. Raises RowFault for one that belongs to the prompt and is not in it.

    names: the fields that the form does not read. written: the row with its names as they are written.
    """
    spelled = dict(zip(row.fields, written.fields, strict=True))
    pair = " and ".join(map(repr, form.required))
    options = [name for name in names if _OPTION.fullmatch(name.strip().lower()) and row.has(name)]
    for name in names:
        value = row.fields[name]
        if not row.has(name) or isinstance(value, bool):
            continue
        plain = name.strip().lower()
        bears = plain in _QUESTIONS or plain.startswith("system") or (len(options) > 1 and name in options) or (
            re.split(r"[^a-z]+", plain.removesuffix("_text"))[-1].removesuffix("s") in _CONTEXTS)
        if bears and form.required[0] not in _CONVERSATIONS and not _stands_in(value, name, examples[0]):
            raise row.fault(f"a field {spelled[name]!r} beside {' and '.join(form.required)}",
                            f"has {spelled[name]!r} beside {pair}, and it is not plain where that "
                            "belongs; write the whole prompt as prompt and the response as completion.")
        if not _is_number(value, row.cells) and not words(name) & _ABOUT and not plain.startswith("meta"):
            faults.change(f"the field {spelled[name]!r} left out", row.where)


def _stands_in(value: Any, name: str, example: Example) -> bool:
    """Whether a value already stands in the prompt, or is the whole row written out as one text (or its prompt)."""
    value = parsed(value)
    prompt = [str(turn.get("content") or "") for turn in example.prompt]
    if isinstance(value, str):
        whole = prompt if name == "prompt" else [*prompt, example.response]
        if all(line.strip() in value for text in whole for line in text.splitlines()):
            return True
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(text, str) and any(text.strip() in turn for turn in prompt) for text in texts)


def _is_number(value: Any, cell: bool) -> bool:
    """Whether a value is a number or a truth value, in a cell of a table as text, or a list of such."""
    if isinstance(value, list):
        return all(_is_number(entry, cell) for entry in value)
    if cell and isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return value.strip().lower() in ("true", "false")
        return True
    return value is None or isinstance(value, bool | int | float)


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
