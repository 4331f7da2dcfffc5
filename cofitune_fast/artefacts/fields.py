"""Field types of the artefacts: the values they allow, and the value that replaces a missing one.

Writers need no package for these annotations; pydantic applies them when an artefact is read. Every artefact is a
TypedDict. A key may be absent unless it is `Required`, because it may be newer than the file. After reading, a key
whose type has a `Missing` is always there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from typing_extensions import TypedDict

T = TypeVar("T")


class Entry(TypedDict, total=False):
    """JSON object; keys that its type does not name are allowed and kept."""

    __pydantic_config__ = {"extra": "allow"}  # noqa: RUF012


@dataclass(frozen=True)
class Missing:
    """Fills in the result of `make` where the key is absent or its value null."""

    make: Callable[[], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema as schema

        filled = schema.no_info_before_validator_function(self._fill, handler(source))
        return schema.with_default_schema(filled, default_factory=self.make, validate_default=True)

    def _fill(self, value: Any) -> Any:
        return self.make() if value is None else value


@dataclass(frozen=True)
class Check:
    """Applies a rule besides the type.

    Attributes:
        rule: returns the value, completed or unchanged, or raises ValueError with the end of a sentence about the
            value, such as "is 3, but must be at most 2".
    """

    rule: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema as schema

        return schema.no_info_after_validator_function(self.rule, handler(source))


@dataclass(frozen=True)
class Read:
    """Applies a rule, as in `Check`, in place of the type's own validation."""

    rule: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema as schema

        return schema.no_info_plain_validator_function(self.rule)


def number(value: Any) -> float:
    """Return the value unchanged if it is a number.

    Raises:
        ValueError: it is no number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"must be a number or null, not {value!r}")
    return value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"must be a number, not {value!r}")
    return value


def number_or_null(value: Any) -> float | None:
    return None if value is None else number(value)


def between(low: float, high: float) -> Check:
    """Require a number within [low, high]; NaN passes."""

    def rule(value: float) -> float:
        if math.isfinite(value) and not low - 1e-9 <= value <= high + 1e-9:
            raise ValueError(f"is {value:g}, but must lie between {low:g} and {high:g}")
        return value

    return Check(rule)


def _not_negative(value: float) -> float:
    if math.isfinite(value) and value < 0:
        raise ValueError(f"is {value:g}, but cannot be negative")
    return value


def words(otherwise: str) -> Read:
    """Read any value as text, and an empty one as `otherwise`."""
    return Read(lambda value: str(value or otherwise))


def _not_empty(value: str) -> str:
    if not value:
        raise ValueError("must be a text that is not empty")
    return value


def distinct(key: str | None = None) -> Check:
    """Require a list without repeated values, or for objects without repeated values of `key`."""

    def rule(entries: list[Any]) -> list[Any]:
        values = [entry if key is None else entry[key] for entry in entries]
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"holds the {key or 'name'} {value!r} twice, but each must be its own")
        return entries

    return Check(rule)


def refuse_unknown(names: Iterable[Any], known: Iterable[Any], where: str, what: str) -> None:
    """Raise ValueError for the first name that is neither known nor None."""
    known = set(known)
    for name in names:
        if name is not None and (isinstance(name, (list, dict)) or name not in known):
            raise ValueError(f"names {name!r} as {where}, which is not {what}")


def nan() -> float:
    return math.nan


def none() -> None:
    return None


Number = Annotated[float, Read(number), Missing(nan)]
"""Number; NaN if it is not known."""
NumberOrNull = Annotated[float | None, Read(number_or_null)]
Finite = Annotated[float, Read(_finite)]
Fraction = Annotated[float, Read(number), between(0, 1), Missing(nan)]
Error = Annotated[float, Read(number), Check(_not_negative), Missing(nan)]
"""Standard error; NaN if it is not known."""
Text = Annotated[str, Check(_not_empty)]
Words = Annotated[str, words(""), Missing(str)]
"""Text that may be empty."""
Items = Annotated[list[T], Missing(list)]
Table = Annotated[dict[str, T], Missing(dict)]
Part = Annotated[T, Missing(dict)]
"""Object that is made with default values where the file lacks it."""
Maybe = Annotated[T | None, Missing(none)]
