"""Checks of single values in a report; each failure is a sentence that says where it is and what was expected."""

from __future__ import annotations

from typing import Any

from ...errors import CofituneError
from .numbers import finite

SCORES = {"spec": 1.0, "vers": 1.0, "knowledge": 1.0, "reasoning": 1.0, "instruction": 1.0, "uni": 2.0}
"""Every score and its upper bound; the lower bound is 0."""
ROUNDING = 0.002  # scores may have been rounded to three decimals before they were written


def check_scores(entry: dict[str, Any], where: str) -> None:
    for key, top in SCORES.items():
        value = number(entry, key, where)
        if finite(value) and not -1e-9 <= value <= top + 1e-9:
            raise CofituneError(f"{where}: `{key}` is {value:g}, but this score lies between 0 and {top:g}.")
        error = number(entry, f"{key}_se", where)
        if finite(error) and error < 0:
            raise CofituneError(f"{where}: `{key}_se` is {error:g}, but a standard error cannot be negative.")
    total, uni = entry["spec"] + entry["vers"], entry["uni"]
    if finite(total) and finite(uni) and abs(total - uni) > ROUNDING:
        raise CofituneError(f"{where}: `uni` is {uni:g}, but spec + vers is {total:g}; score it anew.")


def number(entry: dict[str, Any], key: str, where: str) -> float:
    """The number at `key`, which is set to NaN when it is absent or null."""
    value = entry.get(key)
    if value is None:
        value = entry[key] = float("nan")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CofituneError(f"{where}: `{key}` must be a number or null, not {value!r}.")
    return value


def dictionary(value: Any, where: str) -> dict[str, Any]:
    return _instance(value, dict, where, 'a JSON object {"name": value, …}')


def items(value: Any, where: str) -> list[Any]:
    return _instance(value, list, where, "a JSON list […]")


def text(value: Any, where: str) -> str:
    if not value:
        raise CofituneError(f"{where} must be a text that is not empty.")
    return _instance(value, str, where, "a text")


def _instance(value: Any, kind: type, where: str, what: str) -> Any:
    if not isinstance(value, kind):
        raise CofituneError(f"{where} must be {what}, not {type(value).__name__}.")
    return value


def unique(values: list[Any], where: str, what: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise CofituneError(f"{where}: the {what} {value!r} stands there twice; every {what} must be its own.")
