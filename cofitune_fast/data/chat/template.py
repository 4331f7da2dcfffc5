"""Messages through a tokenizer's chat template, in the form that the template takes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from datetime import date as Date
from typing import Any, NamedTuple

import jinja2

from ...errors import CofituneError
from ..messages import THOUGHTS, Message
from .options import found_once, options_of, with_options
from .time_limit import time_limit

SECONDS = 60
"""The longest that one conversation may take; those of real templates take milliseconds."""

GREETING: list[Message] = [{"role": "user", "content": "Hello"}]
"""A prompt that any chat template takes, to see what it writes around messages."""

_MARK, _KEY, _VALUE, _NAME = "qzxcontentxzq", "qzxkeyxzq", "qzxvaluexzq", "qzxnamexzq"
_TOOL = {"type": "function", "function": {"name": _NAME, "description": "Probe.", "parameters": {
    "type": "object", "properties": {_KEY: {"type": "string", "description": "Probe."}}, "required": [_KEY]}}}
# A macro hides the function of the same name that transformers gives to every template. It writes a format code by
# code, as a template may put formats together. The empty text after it keeps Jinja from eating a line break at the
# beginning of the template.
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{% set at = namespace(code='') %}{% for letter in format %}"
    "{% if not at.code and letter != '%' %}{{ letter }}{% else %}{% set at.code = at.code + letter %}"
    "{% if at.code not in ('%', '%-') %}{{ written_dates[at.code] if at.code in written_dates else "
    "raise_exception('data.date cannot write the format ' + at.code) }}{% set at.code = '' %}{% endif %}{% endif %}"
    "{% endfor %}{{ at.code }}{% endmacro %}{{ '' }}"
)


class TemplateRefusal(CofituneError):
    """Error of a chat template that refuses the messages that it is given."""


class _CallForm(NamedTuple):
    """How a template takes a turn that calls tools.

    Attributes:
        as_text: a call's arguments are a JSON text; else a mapping.
        content: the content of a turn that only calls.
    """

    as_text: bool = False
    content: str | None = ""


def render(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), **variables: Any
           ) -> str:
    """Render messages by the chat template. This is the only place that does.

    Contents and arguments of tool calls take the form that the template needs. A date that the template writes is that
    of the tokenizer's options.

    Args:
        variables: the template's variables, such as add_generation_prompt.

    Raises:
        TemplateRefusal: the template refuses the messages.
        CofituneError: it takes longer than `SECONDS`, as one with an endless loop does.
    """
    return _rendered(tokenizer, [_as_taken(tokenizer, message) for message in messages], tools, **variables)


def _rendered(tokenizer: Any, messages: list[Message], tools: Sequence[Any] = (), **variables: Any) -> str:
    fixed = _fixed_date(tokenizer, bool(tools))
    try:
        with time_limit(SECONDS):
            return tokenizer.apply_chat_template(messages, tools=list(tools) or None, tokenize=False, **fixed,
                                                 **variables)
    except TimeoutError:
        raise CofituneError(f"The tokenizer's chat template has not ended after {SECONDS} s for a conversation of "
                            f"{len(messages)} turns; give the tokenizer a template without endless loops.") from None
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise TemplateRefusal(f"the tokenizer's chat template refuses these messages ({error}); "
                              f"{_cure(messages)}.") from None


def _cure(messages: Sequence[Message]) -> str:
    """Say what a user can do about messages that a template refuses: what most templates refuse, if it is there."""
    roles, cures = [message["role"] for message in messages], []
    if "developer" in roles:
        cures.append("name the developer's role system")
    if "user" in roles and not {"system", "developer"}.isdisjoint(roles):
        cures.append("leave the system turn out, or put it into the first user turn")
    spoken = [role for role in roles if role not in ("system", "developer")]
    if spoken[:1] != ["user"]:
        cures.append("begin with a turn of the user")
    if any(first == second for first, second in itertools.pairwise(spoken) if first != "tool"):
        cures.append("join turns of one role that follow each other")
    if any(len(message.get("tool_calls") or ()) > 1 for message in messages):
        cures.append("give each tool call a turn of its own")
    if "tool" in roles:
        cures.append("leave the turns of tools out")
    return "; or ".join([*cures, "give the tokenizer a template that takes them"])


def text_of(message: Message) -> str:
    """Return the content of a message as text: parts of a list are joined, and no content is an empty text."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)
    return content or ""


def thought_of(message: Message) -> str | None:
    """Return the thought that a message has beside its content; None if there is none."""
    found = next((message[key] for key in THOUGHTS if message.get(key)), None)
    return found if isinstance(found, str) and found.strip() else None


def call_names(message: Message) -> list[str]:
    """Return the names of the functions that a message calls."""
    return [str(_function(call).get("name") or "") for call in message.get("tool_calls") or ()]


def call_arguments(message: Message) -> list[Any]:
    """Return the arguments of the calls of a message: a mapping each, or the text where it is no JSON."""
    return [_arguments(call) for call in message.get("tool_calls") or ()]


def tool_name(tool: Mapping[str, Any]) -> str:
    """Return the name of a tool's definition."""
    return str(_function(tool).get("name") or "")


def _function(entry: Any) -> Mapping[str, Any]:
    return (entry.get("function") or entry) if isinstance(entry, Mapping) else {}


def _as_taken(tokenizer: Any, message: Message) -> Message:
    """Return a message in the form that the template takes."""
    if message.keys() <= {"role", "content"} and isinstance(message.get("content"), str) \
            and not _takes_parts(tokenizer):
        return message
    taken = {key: value for key, value in message.items() if value is not None}
    taken["content"] = text_of(message)
    if thought := thought_of(message):
        taken |= {"reasoning_content": thought, "thinking": thought}  # gpt-oss reads the latter
    if calls := message.get("tool_calls"):
        form = _call_form(tokenizer)
        taken["tool_calls"] = [_call(call, form.as_text) for call in calls]
        if not taken["content"].strip():
            taken["content"] = form.content
    if _takes_parts(tokenizer) and isinstance(taken["content"], str):
        taken["content"] = [{"type": "text", "text": taken["content"]}]
    return taken


def _arguments(call: Mapping[str, Any]) -> Any:
    arguments = _function(call).get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError:
            return arguments
    return {} if arguments is None else arguments


def _call(call: Mapping[str, Any], as_text: bool) -> dict[str, Any]:
    arguments = _arguments(call)
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    outer = {key: value for key, value in call.items() if key not in ("name", "arguments", "function")}
    return {"type": "function", **outer, "function": {**_function(call), "arguments": arguments}}


@found_once
def _takes_parts(tokenizer: Any) -> bool:
    """True if the template reads a content as a list of parts, and leaves out one that is text."""
    try:
        if _MARK in _rendered(tokenizer, [{"role": "user", "content": _MARK}]):
            return False
    except TemplateRefusal:
        pass
    try:
        text = _rendered(tokenizer, [{"role": "user", "content": [{"type": "text", "text": _MARK}]}])
    except TemplateRefusal:
        return False
    return _MARK in text and "'text'" not in text  # a list as Python writes it was not read


@found_once
def _call_form(tokenizer: Any) -> _CallForm:
    """Find the form of a call in which its name, the name of its argument and the value are written as JSON or plain.

    Of forms that are written otherwise, as text in a text or as Python writes a mapping, the first one counts.
    """
    possible = None
    for form in (_CallForm(), _CallForm(True), _CallForm(False, None), _CallForm(True, None)):
        arguments = json.dumps({_KEY: _VALUE}) if form.as_text else {_KEY: _VALUE}
        call = {"id": "call00001", "type": "function", "function": {"name": _NAME, "arguments": arguments}}
        answer = {"role": "assistant", "content": form.content, "tool_calls": [call]}
        if _takes_parts(tokenizer) and form.content is not None:
            answer["content"] = [{"type": "text", "text": form.content}]
        try:
            prompt = _rendered(tokenizer, [_as_taken(tokenizer, message) for message in GREETING], [_TOOL])
            text = _rendered(tokenizer, [*(_as_taken(tokenizer, message) for message in GREETING), answer], [_TOOL])
        except TemplateRefusal:
            continue
        text = text.removeprefix(prompt)
        if _NAME not in text or _KEY not in text or _VALUE not in text:
            continue
        if f"'{_KEY}'" not in text and f'\\"{_KEY}' not in text:
            return form
        possible = possible or form
    return possible or _CallForm()


# Dates --------------------------------------------------------------------------------------------------------------


def date_of(tokenizer: Any) -> str:
    """Return the day that a template writes, YYYY-MM-DD: that of the tokenizer's options, else today."""
    return options_of(tokenizer).date or Date.today().isoformat()


@found_once
def writes_date(tokenizer: Any) -> bool:
    """True if what the chat template writes depends on the day."""
    if not tokenizer.chat_template:
        return False
    first, second = (with_options(tokenizer, date=day) for day in ("2001-02-03", "2012-11-24"))
    system = [{"role": "system", "content": "Hello"}]
    return any(_or_none(first, *probe) != _or_none(second, *probe)
               for probe in ((GREETING, ()), (system + GREETING, ()), (GREETING, [_TOOL])))


def _or_none(tokenizer: Any, messages: list[Message], tools: Sequence[Any]) -> str | None:
    try:
        return render(tokenizer, messages, tools, add_generation_prompt=True)
    except TemplateRefusal:
        return None


@found_once
def _fixed_date(tokenizer: Any, with_tools: bool) -> dict[str, Any]:
    """Return the arguments of `apply_chat_template` that fix the date, where the tokenizer's options name one."""
    day = options_of(tokenizer).date
    if day is None:
        return {}
    template = tokenizer.get_chat_template(None, [_TOOL] if with_tools else None)
    if "strftime_now" not in template:
        return {}
    codes = [f"%{flag}{letter}" for letter in "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ%" for flag in ("", "-")]
    return {"chat_template": _FIXED_DATE + template,
            "written_dates": {code: text for code in codes
                              if (text := _written(Date.fromisoformat(day), code)) is not None}}


def _written(day: Date, code: str) -> str | None:
    try:
        return day.strftime(code)
    except ValueError:  # this platform does not know it
        return None
