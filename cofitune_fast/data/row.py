"""Rows of data files and their fields: texts and lists, as people write them."""

from __future__ import annotations

import ast
import json
import math
from typing import Any, NamedTuple

from .faults import RowFault


class Row(NamedTuple):
    """One row of a data file.

    where: "file:line", or "file:row N" in a file whose lines are no rows.
    cells: every value is a text, as in CSV, so that a list stands as text too.
    """

    fields: dict[str, Any]
    where: str
    cells: bool = False

    def fault(self, kind: str, words: str) -> RowFault:
        """Make the fault of this row with the sentence "WHERE WORDS"."""
        return RowFault(kind, self.where, f"{self.where} {words}")

    def has(self, name: str) -> bool:
        """Whether the field is there and neither null, nor NaN, nor blank, nor an empty list."""
        if name not in self.fields:
            return False
        value = self.fields[name]
        return not is_missing(value) and not (isinstance(value, str) and is_blank(value))

    def text(self, name: str, empty: bool = False) -> str:
        """Read a text field. A number counts as its text. With `empty` the field may be missing, null or blank.

        Raises:
            RowFault: the field is empty or is not text.
        """
        value = self.fields.get(name)
        if is_plain(value) and not value.isspace() and value:
            return value
        if is_missing(value):
            if empty:
                return ""
            raise self.fault(f"an empty {name!r}", f"has an empty {name!r}; fill it or remove the row.")
        text = self.as_text(value, f"has {{}} as {name!r}; it must be text.", f"has in {name!r} {{}}.")
        if not empty and is_blank(text):
            raise self.fault(f"an empty {name!r}", f"has an empty {name!r}; fill it or remove the row.")
        return text

    def as_text(self, value: Any, wrong_type: str, unusable: str) -> str:
        """Return a text or a number as text.

        Args:
            wrong_type, unusable: words for the fault of a value of another type, and of a text with characters that no
                tokenizer can take; "{}" stands for what was found.

        Raises:
            RowFault: the value is neither text nor a number, or it cannot be used.
        """
        if not isinstance(value, str):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise self.fault("a field that is not text", wrong_type.format(type_name(value)))
            return str(value)
        if "\0" in value:
            raise self.fault("a NUL character", unusable.format("a NUL character (\\u0000); remove it"))
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise self.fault("half a character", unusable.format(
                    f"half of a character, \\u{ord(value[error.start]):04x}, as a cut emoji leaves behind; remove it"
                )) from None
        return value

    def check_json(self, value: Any, place: str) -> str:
        """Return an object or a list as JSON text. Raises RowFault if a text in it cannot be used."""
        return self.as_text(json.dumps(value, ensure_ascii=False, default=str), "", f"{place} {{}}.")

    def list(self, name: str) -> list[Any]:
        """Read a list. In a cell of a table it may be written as JSON or as Python writes it.

        Raises:
            RowFault: there is no list, or it is empty.
        """
        value = parsed(self.fields.get(name))
        if isinstance(value, dict):  # a sequence of objects, as the datasets library stores it: an object of lists
            columns = list(value.values())
            if columns and all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
                value = [dict(zip(value, entries, strict=True)) for entries in zip(*columns, strict=True)]
        if isinstance(value, str):
            raise self.fault("a field that is no list",
                             f"has text as {name!r}; it must be a list (in CSV, written as JSON).")
        if not isinstance(value, list) or not value:
            raise self.fault("a field that is no list", f"needs a list with at least one entry as {name!r}.")
        return value


def is_plain(value: Any) -> bool:
    """Whether a value is text in ASCII without NUL, which needs no further look."""
    return type(value) is str and value.isascii() and "\0" not in value


def is_blank(text: str) -> bool:
    """Whether a text has no character that can be seen: white space, also of no width, and control characters."""
    return not any(character.isprintable() and not character.isspace() for character in text)


def is_missing(value: Any) -> bool:
    """Whether a value stands for nothing: null, NaN (which pandas writes for it), or an empty list or object."""
    return value is None or value == [] or value == {} or (isinstance(value, float) and math.isnan(value))


def parsed(value: Any) -> Any:
    """Return what a text holds as JSON or as a Python literal; the value itself if it is no text or holds neither."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        for read in (json.loads, ast.literal_eval):
            try:
                return read(value.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return value


def type_name(value: Any) -> str:
    """Name the type of a value in JSON's words, with its article."""
    names = {dict: "an object", list: "a list", bool: "a truth value", str: "a text", bytes: "bytes",
             type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
