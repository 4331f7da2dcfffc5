"""Cell of a table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    text: str
    small: str = ""  # the standard error, or the share of the weights
    best: bool = False
