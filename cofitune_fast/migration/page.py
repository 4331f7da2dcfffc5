"""YAML of a draft: the settings with a comment on each, then what was left out."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from ..errors import CofituneError
from ..yaml_text import parse_yaml
from .draft import Draft, Note

WIDTH = 110
_LONGEST_VALUE = 60
_LEFT_OUT = {
    "not supported": "Not supported, and what to do:",
    "not known": "Not known to cofitune, and left out:",
}


def as_yaml(draft: Draft, command: str = "cofitune train --config run.yaml") -> str:
    """Write a draft as the text of a configuration, in the user's order.

    Everything of the user's file that stands in a comment is cut to one line, so that it cannot become a setting.

    Raises:
        CofituneError: a value of the file cannot be written in YAML.
    """
    lines = [f"# {one_line(draft.file.name)} of {draft.tool}, read by cofitune import-config. To train:",
             f"#   {one_line(command)}",
             "# Behind a line stands the key that it comes from, where that has another name or value."]
    why = {note.ours: note for note in draft.notes if note.ours}
    for section, keys in _sections(draft.settings).items():
        lines.append("")
        if list(keys) == [""]:
            lines += _line(section, keys[""], why.get(section), draft.tool, 0)
            continue
        lines.append(f"{section}:")
        for key, value in keys.items():
            lines += _line(key, value, why.get(f"{section}.{key}"), draft.tool, 2)
    for kind, heading in _LEFT_OUT.items():
        if notes := [note for note in draft.notes if note.kind == kind]:
            lines += ["", f"# {heading}"]
            for note in notes:
                lines += _comment(f"{told(note)}{' -> ' if note.text else ''}{note.text}", "  ", hang="    ")
    if quiet := [note.key for note in draft.notes if note.kind in ("taken", "changed") and not note.ours]:
        lines += ["", *_comment(f"Done here without a key: {', '.join(dict.fromkeys(quiet))}", hang="  ")]
    if needless := [note.key for note in draft.notes if note.kind == "not needed"]:
        lines += ["", *_comment(f"Not needed here: {', '.join(dict.fromkeys(needless))}", hang="  ")]
    text = "\n".join(lines) + "\n"
    if _read_back(text) != _nested(draft.settings):
        raise CofituneError(f"{draft.file} holds a value that cannot be written in YAML; take it out of the file.")
    return text


def told(note: Note) -> str:
    """The other tool's key and value as they were written, on one line; long values are cut."""
    if note.value is None:
        return one_line(note.key)
    value = note.value if isinstance(note.value, str) else json.dumps(note.value, ensure_ascii=False, default=str)
    value = one_line(value)
    return one_line(f"{note.key}: {value[: _LONGEST_VALUE - 3] + '...' if len(value) > _LONGEST_VALUE else value}")


def one_line(text: str) -> str:
    """Text on one line, without anything that does not print."""
    return "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))


def _sections(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return sections


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    return {section: keys[""] if list(keys) == [""] else keys for section, keys in _sections(settings).items()}


def _line(key: str, value: Any, note: Note | None, tool: str, indent: int) -> list[str]:
    """One setting. A short comment stands behind it, a longer one above."""
    line = f"{' ' * indent}{key}: {_scalar(value)}"
    if note is None:
        return [line]
    if note.kind == "taken" and note.key == key:
        return [line]
    comment = {"taken": note.key, "changed": f"{told(note)}; {note.text}",
               "default": f"default of {tool}" + (f"; {note.text}" if note.text else "")}[note.kind]
    short = f"{line}  # {one_line(comment)}"
    return [short] if len(short) <= WIDTH else [*_comment(comment, indent=indent), line]


def _comment(text: str, start: str = "", *, indent: int = 0, hang: str = "") -> Iterator[str]:
    before = f"{' ' * indent}# {start}"
    yield from textwrap.wrap(one_line(text), WIDTH, initial_indent=before, subsequent_indent=f"{' ' * indent}# {hang}",
                             break_on_hyphens=False)


def _scalar(value: Any) -> str:
    """A value in YAML: plain where it reads back as it is, else in quotes."""
    if isinstance(value, str) and value and one_line(value) == value and _plain(value):
        return value
    if isinstance(value, float):
        return yaml.safe_dump(value).split("\n")[0]
    return json.dumps(value, ensure_ascii=not str(value).isprintable(), default=str)


def _plain(text: str) -> bool:
    return _read_back(f"x: {text}") == {"x": text} and _read_back(f"x: {text}  # a comment") == {"x": text}


def _read_back(text: str) -> Any:
    try:
        return parse_yaml(text)
    except yaml.YAMLError:
        return None
