"""Reader of artefacts: checks a file against the type that its writer used; an error is one sentence."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CofituneError
from ..json_text import read_json

if TYPE_CHECKING:
    from pydantic import TypeAdapter

KINDS = {"report": ("run", "Report"), "comparison": ("comparison", "Comparison"), "analysis": ("analysis", "Analysis")}
"""Kinds of artefacts: the module here and the type in it. A search.json is a report without methods."""

_MUST = {  # pydantic's error types, in the words of JSON
    "dict_type": 'must be a JSON object {"name": value, …}',
    "list_type": "must be a JSON list […]",
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
}


def read_artefact(kind: str, path: str | Path) -> dict[str, Any]:
    """Read and check a JSON file; `kind` is a key of KINDS.

    Raises:
        CofituneError: the file is absent or no JSON, a part does not match its type, or pydantic is missing.
    """
    return checked(kind, read_json(path, kind), path)


def checked(kind: str, content: Any, path: str | Path = "") -> dict[str, Any]:
    """Return a checked copy of an artefact's content, completed as its type says.

    Args:
        path: file name for error messages.

    Raises:
        CofituneError: a part does not match its type, or pydantic is missing.
    """
    try:
        from pydantic import ValidationError
    except ImportError:
        raise CofituneError(f"Reading a {kind} needs pydantic; install it with: pip install 'cofitune-fast[report]'") \
            from None
    try:
        return _adapter(kind).validate_python(content, strict=True)
    except ValidationError as error:
        name = f"{kind} {path}" if path else kind
        flaw = _in_words(error.errors(include_url=False)[0])
        raise CofituneError(f"The {name} cannot be used: {flaw}; put that right or make the {kind} anew.") from None


@cache
def _adapter(kind: str) -> TypeAdapter:
    from pydantic import TypeAdapter

    module, name = KINDS[kind]
    return TypeAdapter(getattr(import_module(f".{module}", __package__), name))


def _in_words(error: dict[str, Any]) -> str:
    """Phrase an error of pydantic as "PLACE is …", such as "methods[2].spec must be a number or null, not 'high'"."""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    kind, value = error["type"], error["input"]
    if kind == "value_error":
        words = str(error["ctx"]["error"])
    elif kind == "missing":
        words = "is missing"
    else:
        words = _MUST.get(kind) or error["msg"].replace("Input should be", "must be")
        words += f", not {type(value).__name__ if isinstance(value, (dict, list)) else repr(value)}"
    return f"{place or 'it'} {words}"
