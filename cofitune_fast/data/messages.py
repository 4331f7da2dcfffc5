"""Messages of a conversation, as the tools of the field write them, in one shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from .faults import Faults, RowFault
from .row import Row, is_missing, is_plain, parsed, type_name

Message = dict[str, Any]
"""A turn: its "role" and "content", and where the row has them "name", "tool_calls", "tool_call_id", and
"reasoning_content", the thought before the content."""

ROLES = ("system", "developer", "user", "assistant", "tool")
CONVERSATIONS = ("messages", "conversations", "conversation")  # fields of a row that hold turns
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Names of the field that holds the thought before an answer, in a message or in a row."""

_CALL = "function_call"  # a turn of the assistant whose text is one tool call or a list of them
_ROLES = {
    **{role: role for role in ROLES},
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("function", "observation", "tool_response", "ipython"), "tool"),
    **dict.fromkeys((_CALL, "tool_call"), _CALL),
}
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
_LEARNT_KEYS = ("weight", "loss_weight", "train", "training", "trainable", "loss")
# Words of keys that would change what is trained or what the model sees, so that leaving the key out is not harmless.
_MEDIA = {"image", "images", "audio", "audios", "video", "videos", "media", "file", "files", "attachment",
          "attachments", "document", "documents"}
_BEARING = _MEDIA | {
    "weight", "weights", "weighted", "loss", "train", "trained", "training", "trainable", "mask", "masked", "label",
    "labels", "learn", "learned", "learning", "ignore", "ignored", "refusal", "prefix", "prefill", "suffix",
    "reasoning", "think", "thinking", "thought", "thoughts", "tool", "tools", "function", "functions", "observation",
    "chosen", "rejected", "text", "content", "context", "input", "output",
}
HARMLESS = {"id", "idx", "index", "uuid", "hash", "timestamp", "time", "date", "created", "meta", "metadata", "model",
             "lang", "language", "source", "score", "rating", "rank", "tokens", "finish_reason", "stop_reason",
             "parallel_tool_calls"}
"""Names of keys and fields that say nothing about what is trained."""
_TEXT_PARTS = ("text", "input_text", "output_text")
_TOOL_PARTS = ("tool_use", "tool_call", "tool_calls", "function_call", "tool_result", "function_call_output")
_CHANGE_FIRST = "the assistant's first turn left out, as nobody speaks before it"


class Turn(NamedTuple):
    """A message, and whether it is to be learnt if it is the assistant's."""

    message: Message
    learnt: bool = True


def read_turns(row: Row, name: str, faults: Faults | None = None) -> list[Turn]:
    """Read a list of messages: {"role", "content"} as OpenAI has them, or {"from", "value"} (ShareGPT).

    Roles may be written in any case; names of other tools, such as human, gpt, function and observation, are known.
    Contents may be lists of text parts, which are joined. A message keeps "name", "tool_calls" (also written as
    "function_call", or as the text of a function_call turn) and "tool_call_id"; its thought becomes
    "reasoning_content". A turn with a "weight" of 0, or with false as "train", "training" or "loss", is not learnt.

    Raises:
        RowFault: a turn is malformed, has a part that is no text, or has a key that bears on training and is unknown.
    """
    value = parsed(row.fields.get(name))
    alone = isinstance(value, dict) and any(isinstance(value.get(key), str) for key in _ROLE_KEYS)
    entries = [value] if alone else row.list(name)
    turns: list[Turn] = []
    for number, entry in enumerate(entries, 1):
        if type(entry) is dict and len(entry) == 2 and entry.get("role") in ROLES and is_plain(entry.get("content")):
            turns.append(Turn({"role": entry["role"], "content": entry["content"]}))  # the common case, for speed
            continue
        place = f"has in {name!r}, turn {number},"
        turn, is_call = _turn(row, entry, place, faults)
        if is_call and turns and turns[-1].message["role"] == "assistant" and turns[-1].learnt == turn.learnt:
            before = turns[-1].message  # some tools write an answer's text and each of its calls as turns of their own
            before["tool_calls"] = [*before.get("tool_calls", []), *turn.message["tool_calls"]]
        else:
            turns.append(turn)
    return turns


def without_first_answer(turns: list[Turn], row: Row, faults: Faults | None) -> list[Turn]:
    """Leave out the assistant's turns before which nobody has spoken, as chat templates refuse them."""
    if not turns or turns[0].message["role"] != "assistant":
        return turns
    if faults is not None:
        faults.change(_CHANGE_FIRST, row.where)
    start = next((number for number, turn in enumerate(turns) if turn.message["role"] != "assistant"), len(turns))
    return turns[start:]


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def read_tools(row: Row) -> tuple[dict[str, Any], ...]:
    """Read the definitions of tools in the field "tools", or "functions" as OpenAI named it; it may be a JSON text."""
    for name in ("tools", "functions"):
        value = parsed(row.fields.get(name))
        if is_missing(value) or (isinstance(value, str) and not value.strip()):
            continue
        row.check_json(value, f"has in {name!r}")
        tools = [value] if isinstance(value, dict) else value
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise row.fault("tools that are not understood",
                            f"has {type_name(value)} as {name!r}; it must be a list of objects, or that list as JSON.")
        for tool in tools:
            inner = tool.get("function", tool)
            if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
                raise row.fault("tools that are not understood", f"has in {name!r} a tool without a 'name'.")
        return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)
    return ()


def _turn(row: Row, entry: Any, place: str, faults: Faults | None) -> tuple[Turn, bool]:
    """Return a turn, and whether it is one whose text is tool calls."""
    if not isinstance(entry, dict):
        raise row.fault("a malformed turn", f"{place} something else than an object with 'role' and 'content'.")
    role_key = next((key for key in _ROLE_KEYS if not is_missing(entry.get(key))), None)
    content_key = next((key for key in _CONTENT_KEYS if entry.get(key) is not None),
                       next((key for key in _CONTENT_KEYS if key in entry), None))
    if role_key is None:
        raise row.fault("a malformed turn", f"{place} something else than an object with 'role' and 'content'.")
    given = entry[role_key]
    role = _ROLES.get(given.strip().lower()) if isinstance(given, str) else None
    if role is None:
        raise row.fault("an unknown role",
                        f"{place} the unknown role {given!r}; the known ones are {', '.join(_ROLES)}.")
    made: Message = {"role": "assistant" if role == _CALL else role, "content": ""}
    learnt = True
    if len(entry) > 2 or content_key is None:
        learnt = _extras(row, entry, made, place, faults)
    if content_key is None and "tool_calls" not in made:
        raise row.fault("a malformed turn", f"{place} something else than an object with 'role' and 'content'.")
    content = entry.get(content_key) if content_key else None
    if role == _CALL:
        calls = parsed(content)
        made["tool_calls"] = [_call(row, call, place) for call in (calls if isinstance(calls, list) else [calls])]
        return Turn(made, learnt), True
    made["content"] = _content(row, content, content_key or "content", made, place)
    return Turn(made, learnt), False


def _content(row: Row, content: Any, key: str, made: Message, place: str) -> str:
    if content is None and (made["role"] == "tool" or "tool_calls" in made):
        return ""
    if content is None and made["role"] == "assistant":
        raise row.fault("an empty response", f"{place} null as {key!r}; it must be text.")
    returned = isinstance(content, list) and made["role"] == "tool" and not all(map(_is_part, content))
    if isinstance(content, list) and content and not returned:
        return "".join(_part(row, part, made, place) for part in content)
    if returned or (isinstance(content, dict) and made["role"] == "tool"):  # what a tool returned, as JSON
        return row.check_json(content, place)
    return row.as_text(content, f"{place} {{}} as {key!r}; it must be text.", f"{place} {{}}.")


def _is_part(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and ("type" in part or "text" in part))


def _part(row: Row, part: Any, made: Message, place: str) -> str:
    """Return the text of a part of a content; a thought goes to the message."""
    if isinstance(part, str):
        part = {"text": part}
    if not isinstance(part, dict):
        raise row.fault("a part that is not text", f"{place} {type_name(part)} as a part of the content.")
    part = _given(part)
    media = next((key for key in part if words(key) & _MEDIA), None)
    kind = part.get("type") or media or "text"
    if kind in _TEXT_PARTS and "text" in part and media is None:
        return row.as_text(part["text"], f"{place} {{}} as the text of a part.", f"{place} {{}}.")
    if kind in THOUGHTS and isinstance(part.get(kind, part.get("text")), str):
        _think(row, made, part.get(kind, part.get("text")), place)
        return ""
    if kind in _TOOL_PARTS:
        raise row.fault("a part that is not text",
                        f"{place} a part of the type {kind!r}; write calls as the turn's tool_calls, and what a tool "
                        "returned as a turn of the role tool.")
    raise row.fault("a part that is not text", f"{place} a part of the type {kind!r}; only text is trained.")


def _extras(row: Row, entry: Mapping[str, Any], made: Message, place: str, faults: Faults | None) -> bool:
    """Put the further keys of a turn into `made`; return whether the turn is to be learnt."""
    learnt = True
    for key, value in entry.items():
        if key in _ROLE_KEYS or key in _CONTENT_KEYS or is_missing(value) or value == "":
            continue
        if key in _LEARNT_KEYS:
            learnt = _is_learnt(row, key, value, made["role"], place) and learnt
        elif key in THOUGHTS:
            if made["role"] == "assistant":
                _think(row, made, value, place)
            elif str(value).strip():
                raise row.fault("a key that is not understood", f"{place} {key!r} in a turn of the {made['role']}.")
        elif key == "name" or key == "tool_call_id":
            made[key] = row.as_text(value, f"{place} {{}} as {key!r}; it must be text.", f"{place} {{}}.")
        elif key in ("tool_calls", _CALL):
            if made["role"] != "assistant":
                raise row.fault("a key that is not understood", f"{place} {key!r} in a turn of the {made['role']}.")
            calls = parsed(value)
            calls = calls if isinstance(calls, list) else [calls]
            made["tool_calls"] = [*made.get("tool_calls", []), *(_call(row, call, place) for call in calls)]
        elif key in HARMLESS:
            continue
        elif words(key) & _BEARING:
            what = "only text is trained" if words(key) & _MEDIA else "remove it, or write what it says in another way"
            raise row.fault(f"the key {key!r} in a turn", f"{place} the key {key!r}, which is not understood; {what}.")
        elif faults is not None:
            faults.change(f"the key {key!r} of turns left out", row.where)
    return learnt


def _think(row: Row, made: Message, value: Any, place: str) -> None:
    thought = row.as_text(value, f"{place} {{}} as a thought; it must be text.", f"{place} {{}}.")
    if thought.strip():
        if made.get("reasoning_content", thought) != thought:
            raise row.fault("two thoughts in a turn", f"{place} two different thoughts; keep one of them.")
        made["reasoning_content"] = thought


def _is_learnt(row: Row, key: str, value: Any, role: str, place: str) -> bool:
    flags = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
    learnt = flags.get(str(value).strip().lower())
    if learnt is None:
        raise row.fault("a weight other than 0 and 1", f"{place} {value!r} as {key!r}; a turn is learnt (1 or true) or "
                                                       "not (0 or false).")
    if learnt and role != "assistant":
        raise row.fault("a turn to learn that is not the assistant's",
                        f"{place} {value!r} as {key!r} in a turn of the {role}; only turns of the assistant are "
                        "learnt, so remove it.")
    return learnt


def _call(row: Row, call: Any, place: str) -> dict[str, Any]:
    """Return a tool call as {"type": "function", "function": {"name", "arguments"}}, the arguments as an object."""
    call = _given(call) if isinstance(call, dict) else {}
    inner = call.get("function", call)
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise _bad_call(row, place, "a tool call that is no object (or its JSON) with 'name' and 'arguments'.")
    arguments = next((inner[key] for key in ("arguments", "parameters", "input") if key in inner), {})
    arguments = {} if arguments == "" else parsed(arguments)
    if not isinstance(arguments, dict):
        raise _bad_call(row, place, f"a call of {name!r} whose 'arguments' are no JSON object.")
    row.check_json(arguments, f"{place} a call of {name!r} with")
    return {**({"id": call["id"]} if "id" in call else {}),
            "type": "function", "function": {"name": name, "arguments": arguments}}


def _bad_call(row: Row, place: str, words: str) -> RowFault:
    return row.fault("a broken tool call", f"{place} {words}")


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the null entries of an object."""
    return {key: value for key, value in fields.items() if value is not None}


def words(key: str) -> set[str]:
    """Return the words of a key in lower case: imageUrl and image_url have the same."""
    return set(re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()))
