"""Proof that everything in a row is in the text that the model is given."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ...errors import CofituneError
from ..faults import RowFault
from ..formats import Example, Message
from .conversation import parted, prompt_text, response_text, thought_and_content
from .options import found_once
from .template import call_arguments, call_names, text_of, tool_name
from .thinking import holds_mark

_LONG = 16  # characters of a text that is not in a rendered prompt by coincidence


class _Piece(NamedTuple):
    """A text of a row that must be written.

    Attributes:
        what: "content", "name", "call", "argument" or "tool".
        number: which message, from 0; for a tool, which tool; the response is the last message.
        call: which call of the message, from 0; 0 for what is no call.
        text: what must be written.
    """

    what: str
    number: int
    call: int
    text: str


def check_shown(tokenizer: Any, example: Example, prompt: str, response: str) -> None:
    """Check that prompt and response hold every content, name, tool and tool call with its arguments of the example.

    A template may strip a content, join its parts, write it as JSON, and leave out thoughts and what parts of a tool's
    result it likes. A short text could stand in the prompt by coincidence, so a conversation of the same build with
    marks for its texts is rendered too, once per build.

    Raises:
        RowFault: something of the row is left out; it names what.
    """
    gone = _left_out(tokenizer, _build(example)) if tokenizer.chat_template else frozenset()
    squeezed: dict[str, str] = {}
    last = len(example.prompt)
    for piece in _pieces(tokenizer, example):
        text = response if piece.what != "tool" and piece.number == last else prompt
        marked_gone = piece[:3] in gone
        if piece.what == "content" and piece.number < last and example.prompt[piece.number]["role"] == "tool":
            fits = not marked_gone or _shows(text, piece.text, squeezed)
        else:  # calls of one function have one name, however long
            by_chance = len(piece.text) < _LONG or piece.what in ("call", "argument")
            fits = _shows(text, piece.text, squeezed) and not (marked_gone and by_chance)
        if not fits:
            raise _fault(tokenizer, example, piece)


def _fault(tokenizer: Any, example: Example, piece: _Piece) -> RowFault:
    where = example.where or "An example"
    is_response = piece.number == len(example.prompt)
    role = "assistant" if is_response else example.prompt[min(piece.number, len(example.prompt) - 1)]["role"]
    message = "the response" if is_response else f"message {piece.number + 1} ({role})"
    cut = piece.what == "content" and role == "assistant" and holds_mark(tokenizer, piece.text)
    why = ("the chat template cuts it at the end of a thought, which it mentions; write that mark otherwise" if cut else
           "the chat template has no place for it; change the turn's role or form, or leave it out")
    kind, sentence = {
        "content": ("a message that the chat template leaves out",
                    f"the content of {message} is not in the rendered {'response' if is_response else 'prompt'}: "
                    f"{why}"),
        "name": ("a name that the chat template leaves out",
                 f"the name of {message}, {piece.text!r}, is not in the rendered text: the chat template takes no "
                 "names there; leave the name out"),
        "call": ("tool calls that the chat template leaves out",
                 f"the call of the tool {piece.text!r} in {message} is not in the rendered text: the chat template "
                 "takes no such tool calls, or fewer in one turn; leave the call out, or give the tokenizer a template "
                 "that takes them"),
        "argument": ("tool calls that the chat template leaves out",
                     f"{piece.text!r}, in the arguments of call {piece.call + 1} in {message}, is not in the rendered "
                     "text: the chat template takes no such arguments; leave the call out, or give the tokenizer a "
                     "template that takes them"),
        "tool": ("tools that the chat template leaves out",
                 f"the tool {piece.text!r} is not in the rendered prompt: the chat template takes no tools; leave "
                 "them out, or give the tokenizer a template that takes them"),
    }[piece.what]
    return RowFault(kind, example.where, f"{where}: {sentence}.")


def _pieces(tokenizer: Any, example: Example) -> Iterator[_Piece]:
    for number, tool in enumerate(example.tools):
        if tool_name(tool):
            yield _Piece("tool", number, 0, tool_name(tool))
    for number, message in enumerate([*example.prompt, example.answer]):
        text = text_of(message)
        if number == len(example.prompt):
            text = thought_and_content(tokenizer, example)[1]
        elif message["role"] == "assistant":
            text = parted(tokenizer, message)[1]
        if text.strip():
            yield _Piece("content", number, 0, text.strip())
        if message.get("name") and message["role"] != "tool":
            yield _Piece("name", number, 0, str(message["name"]))
        for place, (name, arguments) in enumerate(zip(call_names(message), call_arguments(message), strict=True)):
            yield _Piece("call", number, place, name)
            for leaf in _leaves(arguments):
                yield _Piece("argument", number, place, leaf)


def _leaves(value: Any) -> Iterator[str]:
    """Every key and every value in arguments, as text."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    elif value is not None and value != "":  # no value is written in many ways, such as not at all
        yield value if isinstance(value, str) else json.dumps(value)


def _shows(text: str, wanted: str, squeezed: dict[str, str]) -> bool:
    """True if a rendered text holds the wanted one as it is, as JSON or Python writes it, or with other space."""
    if wanted in text:
        return True
    as_json = json.dumps(wanted, ensure_ascii=False)[1:-1]
    forms = (as_json, json.dumps(wanted)[1:-1], json.dumps(as_json, ensure_ascii=False)[1:-1], repr(wanted)[1:-1],
             *([wanted.capitalize()] if wanted in ("true", "false") else []))
    if any(form in text for form in forms):
        return True
    if text not in squeezed:
        squeezed[text] = "".join(text.split())
    return "".join(wanted.split()) in squeezed[text]


def _build(example: Example) -> str:
    """The build of a conversation as JSON: its messages with a mark for each text and each call, and its tools."""
    ids: dict[Any, str] = {}

    def marked(number: int, message: Message) -> Message:
        build: dict[str, Any] = {"role": message["role"]}
        if text_of(message).strip():
            build["content"] = f"qzx{number}contentxzq"
        if message.get("name"):
            build["name"] = f"qzx{number}namexzq"
        if message.get("tool_call_id"):
            build["tool_call_id"] = ids.get(message["tool_call_id"], "call00001")
        for place, (call, arguments) in enumerate(zip(message.get("tool_calls") or (), call_arguments(message),
                                                      strict=True)):
            name, key, value = (f"qzx{number}{what}{place}xzq" for what in ("call", "key", "value"))
            build.setdefault("tool_calls", []).append({
                "id": ids.setdefault(call.get("id") or name, f"call{len(ids) + 1:05}"),
                "function": {"name": name, "arguments": {key: value} if arguments else {}}})
        return build

    messages = [marked(number, message) for number, message in enumerate([*example.prompt, example.answer])]
    return json.dumps([messages, len(example.tools)])


@found_once
def _left_out(tokenizer: Any, build: str) -> frozenset[tuple[str, int, int]]:
    """Find what the template leaves out of a conversation of this build: the first three fields of `_Piece`s."""
    messages, tools = json.loads(build)
    *prompt, answer = [{"content": "", **message} for message in messages]
    also = {key: answer[key] for key in ("name", "tool_calls") if key in answer}
    example = Example(prompt, answer["content"], tools=tuple(map(_tool, range(tools))), also=also)
    try:
        before = prompt_text(tokenizer, prompt, example.tools)
        after = response_text(tokenizer, example, needs_thought=False)
    except CofituneError:
        return frozenset()
    texts = [before] * len(prompt) + [after]
    pieces = [(_Piece("tool", number, 0, tool_name(tool)), before) for number, tool in enumerate(example.tools)]
    for number, (message, text) in enumerate(zip(messages, texts, strict=True)):
        pieces += [(_Piece(what, number, 0, message[what]), text) for what in ("content", "name") if what in message]
        for place, call in enumerate(message.get("tool_calls", ())):
            pieces.append((_Piece("call", number, place, call["function"]["name"]), text))
            pieces += [(_Piece("argument", number, place, leaf), text)
                       for leaf in _leaves(call["function"]["arguments"])]
    return frozenset(piece[:3] for piece, text in pieces if piece.text not in text)


def _tool(number: int) -> Mapping[str, Any]:
    parameters = {"type": "object", "properties": {"qzx": {"type": "string"}}, "required": ["qzx"]}
    return {"type": "function",
            "function": {"name": f"qzx{number}toolxzq", "description": "Probe.", "parameters": parameters}}
