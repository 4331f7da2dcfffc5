"""Number formats of every table and picture: one function per kind; missing values are an en dash."""

from __future__ import annotations

import math

MISSING = "–"
NBSP = "\u00a0"  # keeps a number and its unit on one line


def finite(value: object) -> bool:
    """True for a real, finite number; NaN, infinities, None and booleans are missing values."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def score(value: float | None) -> str:
    return f"{value:.3f}" if finite(value) else MISSING


def standard_error(value: float | None) -> str:
    return f"±{NBSP}{value:.3f}" if finite(value) else ""


def score_with_error(value: float | None, error: float | None) -> str:
    return " ".join(filter(None, [score(value), standard_error(error) if finite(value) else ""]))


def percent(fraction: float | None) -> str:
    """Format whole percents, with a decimal where rounding would mislead: below 10 % and next to 100 %."""
    if not finite(fraction):
        return MISSING
    value = 100 * fraction
    digits = 1 if value and (abs(value) < 9.95 or 0 < abs(value - 100) < 0.95) else 0
    if digits and 0 < abs(value) < 0.05:
        return f"<{NBSP}0.1{NBSP}%"
    return f"{value:.{digits}f}{NBSP}%"


def count(value: float | None) -> str:
    """Format a number of parameters: 1234 -> 1.23 K, 134515008 -> 135 M, 8.03e9 -> 8.03 B."""
    if not finite(value):
        return MISSING
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= 0.9995 * limit:
            return f"{_three_digits(value / limit)}{NBSP}{unit}"
    return f"{value:.0f}"


def byte_size(value: float | None) -> str:
    """Format bytes in binary units: 1073741824 -> 1.00 GiB."""
    if not finite(value) or value < 0:
        return MISSING
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{_three_digits(value / 1024**power)}{NBSP}{unit}"
    return f"{value:.0f}{NBSP}B"


def duration(seconds: float | None) -> str:
    """Format seconds with two units at most: 0.4 s, 12 s, 5 min 12 s, 2 h 5 min, 3 d 4 h."""
    if not finite(seconds) or seconds < 0:
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.1f}{NBSP}s" if seconds else f"0{NBSP}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NBSP}s"
    for size, unit, part, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            large, rest = whole // size, (whole % size) // part
            return f"{large}{NBSP}{unit}" + (f" {rest}{NBSP}{small}" if rest else "")
    raise AssertionError(seconds)


def rate(value: float | None) -> str:
    """Format a learning rate in the usual notation: 4e-05 -> 4e-5."""
    if not finite(value):
        return MISSING
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    if not exponent and 0 < abs(value) < 1e-2:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def shorten(text: str, length: int) -> str:
    """Shorten a text to at most `length` characters by cutting its middle, because both ends of a region text matter.
    """
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    head = (length - 1 + 1) // 2
    return text[:head] + "…" + text[len(text) - (length - 1 - head) :]


def _three_digits(value: float) -> str:
    return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}"
