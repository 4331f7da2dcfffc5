"""Headline of a page: a title, some sentences, a badge and a few large numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from .differences import UNKNOWN


@dataclass(frozen=True)
class Tile:
    """One large number at the top of the page."""

    value: str
    label: str


@dataclass(frozen=True)
class Headline:
    title: str
    sentences: list[str] = field(default_factory=list)
    outcome: str = UNKNOWN
    badge: str = ""
    tiles: list[Tile] = field(default_factory=list)
