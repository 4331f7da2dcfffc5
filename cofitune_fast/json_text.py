"""JSON as text: written whole, read against a form, also where it comes from a stranger."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .errors import CofituneError
from .files import possible_path, write_text

_LARGEST_FLOAT = int(sys.float_info.max)
_WORDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number",
          bool: "true or false", type(None): "null"}


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path, what: str, form: Any = object) -> Any:
    """Parse a JSON file; `what` names the artefact in errors, e.g. "delta". form: see `flaw`.

    Raises:
        CofituneError: the file is absent, no JSON, or not of the form.
    """
    path = possible_path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CofituneError(f"No {what} at {path}: the file does not exist.") from None
    except (OSError, ValueError) as error:
        raise CofituneError(f"The {what} {path} cannot be read as JSON ({error}); make it anew.") from None
    return parse_json(text, f"The {what} {path}", form)


def parse_json(text: str | bytes, what: str, form: Any = object, way_out: str = "make it anew") -> Any:
    """Parse a JSON text that may come from a stranger.

    Args:
        what: names the text in errors, e.g. "The delta PATH".
        form: what the value must be, see `flaw`.

    Raises:
        CofituneError: the text is no JSON, is nested too deeply, has a number of thousands of digits, or is not of the
            form.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise CofituneError(f"{what} cannot be read as JSON (it is nested too deeply); {way_out}.") from None
    except ValueError as error:
        reason = error if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)) else "a number is too long"
        raise CofituneError(f"{what} cannot be read as JSON ({reason}); {way_out}.") from None
    if problem := flaw(value, form):
        raise CofituneError(f"{what} cannot be used: {problem}; {way_out}.")
    return value


def flaw(value: Any, form: Any, place: str = "") -> str | None:
    """Say in words where a value of JSON is not of a form; None if it is.

    form: a type or a tuple of types, where float takes whole numbers too and int takes no booleans; [form] for a list;
        {str: form} for an object with any names; {"name": form, "other?": form} for one that has `name` and may have
        `other` and more.

    >>> flaw({"a": [1, "x"]}, {"a": [int]})
    'a[1] must be a whole number, not a text'
    """
    if isinstance(form, dict) and isinstance(value, dict):
        if missing := next((name for name in form if name is not str and name.rstrip("?") == name not in value), None):
            return f"{place}.{missing} is missing".removeprefix(".")
        forms = dict.fromkeys(value, form[str]) if str in form else {name.rstrip("?"): form[name] for name in form}
        parts = [(value[name], inside, f"{place}.{name}".removeprefix(".")) for name, inside in forms.items()
                 if name in value]
    elif isinstance(form, list) and isinstance(value, list):
        parts = [(inside, form[0], f"{place}[{number}]") for number, inside in enumerate(value)]
    else:
        wanted = form if isinstance(form, tuple) else (type(form) if isinstance(form, (dict, list)) else form,)
        whole = float in wanted and type(value) is int and abs(value) <= _LARGEST_FLOAT
        if object in wanted or type(value) in wanted or whole:
            return None
        found = _WORDS.get(type(value), type(value).__name__)
        return f"{place or 'it'} must be {' or '.join(_WORDS[kind] for kind in wanted)}, not {found}"
    return next((problem for part in parts if (problem := flaw(*part))), None)
