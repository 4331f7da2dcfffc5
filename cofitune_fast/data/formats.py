"""Parse the common formats of training data into prompts and responses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CofituneError
from .rows import Row, read_rows

Message = dict[str, Any]
"""A turn: its "role" and "content", and where the row has them "name", "tool_calls", "tool_call_id", and
"reasoning_content", the thought before the content."""

ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation"), "tool"),
}


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


@dataclass(frozen=True)
class Form:
    name: str
    required: tuple[str, ...]
    parse: Callable[[Row], list[Example]]


def read_examples(path: str | Path, limit: int | None = None) -> list[Example]:
    """Read the first `limit` rows (None: all) of a JSON, JSON Lines, CSV or TSV file of training examples.

    The fields of the first row decide the format, tried in this order. Every other row must have the same format:

    - messages: a list of {"role", "content"}. Each assistant turn is an Example, with all turns before it as prompt;
    - conversations (ShareGPT): the same with {"from", "value"}, and optionally "system" beside it;
    - prompt, completion: strings or lists of messages; optionally references, a list of strings;
    - instruction, output (Alpaca): optionally input, system and history, a list of [instruction, output] pairs.

    In CSV every value is a string. A cell for a list (messages, references...) holds the list as JSON.

    Raises CofituneError with file and line for every fault of the data; see also read_rows.
    """
    return parse_examples(read_rows(path, limit))


def parse_examples(rows: Sequence[Row]) -> list[Example]:
    """Parse rows in one of the formats of `read_examples`. The fields of the first row decide the format."""
    form = detect_form(rows[0])
    examples = []
    for row in rows:
        missing = [name for name in form.required if name not in row.fields]
        if missing:
            raise CofituneError(
                f"{row.where} lacks the field {_quoted(missing)} of the {form.name} form that {rows[0].where} has."
            )
        examples.extend(form.parse(row))
    return examples


def detect_form(row: Row) -> Form:
    for form in FORMS:
        if all(name in row.fields for name in form.required):
            return form
    known = "; ".join(f"{form.name} ({', '.join(form.required)})" for form in FORMS)
    raise CofituneError(f"{row.where} has the fields {_quoted(row.fields)}, which is none of the known forms: {known}.")


def _parse_messages(row: Row) -> list[Example]:
    return _assistant_turns(_messages(row, "messages"), row.where)


def _parse_conversations(row: Row) -> list[Example]:
    turns = _messages(row, "conversations", role_key="from", content_key="value", roles=_SHAREGPT_ROLES)
    return _assistant_turns(_system(row) + turns, row.where)


def _parse_prompt_completion(row: Row) -> list[Example]:
    prompt = _text_or_messages(row, "prompt", "user")
    completion = _text_or_messages(row, "completion", "assistant")
    references = _list(row, "references") if row.fields.get("references") else []
    for reference in references:
        if not isinstance(reference, str):
            raise CofituneError(
                f"{row.where} has a reference that is not text: 'references' must be a list of strings."
            )
    return _assistant_turns(prompt + completion, row.where, start=len(prompt), references=tuple(references))


def _parse_alpaca(row: Row) -> list[Example]:
    history = []
    for pair in _list(row, "history") if row.fields.get("history") else []:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise CofituneError(
                f"{row.where} has a 'history' that is not a list of [instruction, output] pairs of text."
            )
        history += [_message("user", pair[0]), _message("assistant", pair[1])]
    instruction, addition = _text(row, "instruction"), _text(row, "input", empty=True)
    question = f"{instruction}\n{addition}" if addition.strip() else instruction
    return [Example([*_system(row), *history, _message("user", question)], _text(row, "output"), row.where)]


FORMS = (
    Form("messages", ("messages",), _parse_messages),
    Form("conversations", ("conversations",), _parse_conversations),
    Form("prompt/completion", ("prompt", "completion"), _parse_prompt_completion),
    Form("Alpaca", ("instruction", "output"), _parse_alpaca),
)


def _assistant_turns(
    messages: list[Message], where: str, start: int = 0, references: tuple[str, ...] = ()
) -> list[Example]:
    """Make one Example of each assistant turn at or after position `start`."""
    if messages[0]["role"] == "assistant":
        raise CofituneError(f"{where} begins with an assistant turn; a user or system turn must come first.")
    examples = [
        Example(messages[:position], message["content"], where, references)
        for position, message in enumerate(messages)
        if position >= start and message["role"] == "assistant"
    ]
    if not examples:
        raise CofituneError(f"{where} has no assistant turn, so there is no response to learn.")
    if any(not example.response.strip() for example in examples):
        raise CofituneError(f"{where} has an empty assistant turn; fill it or remove the row.")
    return examples


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _system(row: Row) -> list[Message]:
    system = _text(row, "system", empty=True)
    return [_message("system", system)] if system.strip() else []


def _text(row: Row, name: str, empty: bool = False) -> str:
    """Read the text field `name`. With `empty` it may be missing, null or blank."""
    value = row.fields.get(name)
    if value is None and empty:
        return ""
    if not isinstance(value, str):
        raise CofituneError(f"{row.where} has a {type(value).__name__} as {name!r}; it must be text.")
    if not empty and not value.strip():
        raise CofituneError(f"{row.where} has an empty {name!r}; fill it or remove the row.")
    return value


def _text_or_messages(row: Row, name: str, role: str) -> list[Message]:
    value = row.fields[name]
    if isinstance(value, list):
        return _messages(row, name)
    return [_message(role, _text(row, name))]


def _list(row: Row, name: str) -> list[Any]:
    value = row.fields.get(name)
    if isinstance(value, str):  # a CSV cell
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise CofituneError(
                f"{row.where} has text as {name!r}; it must be a list (in CSV, written as JSON)."
            ) from None
    if not isinstance(value, list) or not value:
        raise CofituneError(f"{row.where} needs a list with at least one entry as {name!r}.")
    return value


def _messages(
    row: Row, name: str, role_key: str = "role", content_key: str = "content", roles: dict[str, str] | None = None
) -> list[Message]:
    roles = roles or {role: role for role in ROLES}
    messages = []
    for number, turn in enumerate(_list(row, name), 1):
        place = f"{row.where} has in {name!r}, turn {number},"
        if not isinstance(turn, dict) or not {role_key, content_key} <= turn.keys():
            raise CofituneError(f"{place} something else than an object with {role_key!r} and {content_key!r}.")
        role, content = turn[role_key], turn[content_key]
        if not isinstance(role, str) or role not in roles:
            raise CofituneError(f"{place} the unknown role {role!r}; the known ones are {', '.join(roles)}.")
        if not isinstance(content, str):
            raise CofituneError(f"{place} a {type(content).__name__} as {content_key!r}; it must be text.")
        messages.append(_message(roles[role], content))
    return messages


def _quoted(names: Any) -> str:
    return ", ".join(repr(name) for name in names)
