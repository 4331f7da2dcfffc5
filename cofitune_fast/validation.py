"""Validation of settings: plain values are checked by the types and ranges of the class that will hold them.

pydantic is imported only when values are read; the classes themselves do not need it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from .errors import CofituneError

T = TypeVar("T")
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")  # pydantic's errors of models and of dataclasses


def validated(kind: type[T], values: Any, where: str | Callable[[str], str]) -> T:
    """Build an instance of `kind`, a dataclass or a pydantic model, from plain values.

    A dataclass refuses unknown keys if its `__pydantic_config__` says so, and checks ranges in `__post_init__`.

    Args:
        where: source of the values for error messages, such as "run.yaml", or a function that returns it for a key.

    Raises:
        CofituneError: a key is unknown (the sentence names the nearest known one), or a value has the wrong type or is
            out of range.
    """
    try:
        from pydantic import ValidationError
    except ImportError:
        raise CofituneError("Reading settings needs pydantic: pip install 'cofitune-fast[cli]'.") from None
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        raise CofituneError(_sentence(kind, error.errors(), where)) from None


def check_choices(settings: Any, section: str) -> None:
    """Refuse a value that the Literal of its field does not name, in settings made without `validated`.

    Raises:
        CofituneError: the first such value.
    """
    for name, annotation in fields_of(type(settings)).items():
        value = getattr(settings, name)
        if get_origin(annotation) is Literal and value not in get_args(annotation):
            known = ", ".join(get_args(annotation))
            raise CofituneError(f"{section}.{name} is {value!r}; choose one of {known}.")


def fields_of(kind: Any) -> dict[str, Any]:
    """Return the annotations of a dataclass or pydantic model by field name; {} for anything else."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return {field.name: hints[field.name] for field in fields(kind)}
    return {name: field.annotation for name, field in getattr(kind, "model_fields", {}).items()}


def section_of(annotation: Any) -> Any:
    """Return the dataclass or pydantic model that a field holds, alone or optionally; None if it holds neither."""
    return next((kind for kind in (annotation, *get_args(annotation)) if fields_of(kind)), None)


@cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _sentence(kind: Any, problems: Sequence[Any], where: str | Callable[[str], str]) -> str:
    # Report a misspelt key first, because it often causes the other problems.
    problem = min(problems, key=lambda item: item["type"] not in _UNKNOWN_KEY)
    place: list[str] = []
    section, parent = kind, kind
    for part in problem["loc"]:  # parts after a plain field are internal to pydantic
        if section is None:
            break
        place.append(str(part))
        parent, section = section, section_of(fields_of(section).get(str(part)))
    key = ".".join(place)
    source = where if isinstance(where, str) else where(key)
    if problem["type"] in _UNKNOWN_KEY:
        known = sorted(fields_of(parent))
        nearest = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*place[:-1], nearest[0]])}?" if nearest else f"known are {', '.join(known)}."
        return f"Unknown key {key} in {source}; {hint}"
    own = problem.get("ctx", {}).get("error")
    if isinstance(own, CofituneError):  # raised by __post_init__, and names the key
        return str(own) if callable(where) else f"{source[:1].upper()}{source[1:]}: {own}"
    return f"{f'{key} in ' if key else ''}{source} is wrong: {problem['msg']} (given: {problem['input']!r})."
