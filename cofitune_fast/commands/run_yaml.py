"""A configuration as commented YAML: each key with its value and the reason beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

_COLUMN = 40  # where the reasons begin
_WIDTH = 118
_PLAIN = re.compile(r"[A-Za-z_.~/][\w.~/@%+,=-]*")
_NOT_TEXT = ("true", "false", "yes", "no", "on", "off", "null", "none", "y", "n", "~")


class Entry(NamedTuple):
    """A key such as "data.train", its value, and why it has it.

    Without a key it is a remark before the next key. With `off` it is written as a comment, ready to be taken in.
    """

    key: str
    value: Any
    reason: str
    off: bool = False


def remark(text: str) -> Entry:
    return Entry("", None, text)


def written(entries: Iterable[Entry]) -> str:
    """Return entries as YAML, with an empty line before each section; those of a section must stand together."""
    lines: list[str] = []
    section, remarks = "", []
    for entry in entries:
        if not entry.key:
            remarks += [f"# {line}".rstrip() for line in entry.reason.splitlines()]
            continue
        first, dot, name = entry.key.partition(".")
        indent = "  " if dot else ""
        if first != section:
            lines += ["", *remarks, *([f"{first}:"] if dot else [])]
        else:
            lines += [f"{indent}{line}" for line in remarks]
        mark = "# " if entry.off else ""
        lines += _line(f"{indent}{mark}{name if dot else first}: {as_yaml(entry.value)}", entry.reason, indent)
        section, remarks = first, []
    lines += ["", *remarks]
    return "\n".join(lines).strip("\n") + "\n"


def _line(text: str, reason: str, indent: str) -> list[str]:
    if not reason:
        return [text]
    beside = f"{text:{_COLUMN - 1}} # {reason}"
    return [beside] if len(beside) <= _WIDTH else [f"{indent}# {reason}", text]


def as_yaml(value: Any) -> str:
    """Return a value as YAML on one line; JSON is YAML, so what is no plain word is written as JSON."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    return json.dumps(value, ensure_ascii=False)
