"""The space of a tree search, as data: levels that say which regions to try inside the best one so far.

A level has candidate `layers` and candidate `roles`; its children are all pairs of the two.
`layers`: a list of layer texts (`25%-50%`, `8-15`), `parent` (the best region's own) or `halves` (of those).
`roles`: a list of role texts (`ffn.up+ffn.down`, `mha`), `parent`, or `each` (every role of the best region by itself).
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CofituneError
from ..regions import Region

BROAD = ("0%-50%", "25%-75%", "50%-100%")


@dataclass(frozen=True)
class Level:
    """One level of the tree; see the module's text for what `layers` and `roles` may be."""

    name: str
    layers: tuple[str, ...] | str = "parent"
    roles: tuple[str, ...] | str = "parent"


@dataclass(frozen=True)
class Candidate:
    """A node to try: `region` is `roles@layers`; `parent` is the id of the node it refines."""

    level: int
    roles: str
    layers: str
    parent: str | None = None

    @property
    def region(self) -> Region:
        return Region.parse(f"{self.roles}@{self.layers}")

    @property
    def id(self) -> str:
        """Stable: made from what the node is, not from when it was tried."""
        content = f"{self.level}|{self.region}|{self.parent or ''}"
        return hashlib.sha256(content.encode()).hexdigest()[:10]


# The paper's ranges and modules (halves of the depth, then quarters, then single projections). As in its released
# scripts MHA means q, k, v and FFN means up, down; `extended` adds the gate and the attention output.
SPACES: dict[str, tuple[Level, ...]] = {
    "paper": (
        Level("broad range × module", BROAD, ("attn.q+attn.k+attn.v", "ffn.up+ffn.down")),
        Level("narrow range", "halves"),
        Level("projection", roles="each"),
    ),
    "extended": (
        Level("broad range × module", BROAD, ("mha", "ffn")),
        Level("narrow range", "halves"),
        Level("projection", roles="each"),
    ),
}


def space_levels(space: str | Sequence[dict[str, Any]]) -> tuple[Level, ...]:
    """The levels of a named space, or of a user's own list of {name, layers, roles}."""
    if isinstance(space, str):
        if space not in SPACES:
            nearest = difflib.get_close_matches(space, SPACES, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(SPACES)}."
            raise CofituneError(f"Unknown search space {space!r}; {hint}")
        return SPACES[space]
    if not space:
        raise CofituneError("The search space has no level; give at least one with layers and roles.")
    levels = []
    for number, level in enumerate(space, 1):
        unknown = set(level) - {"name", "layers", "roles"}
        if unknown:
            raise CofituneError(f"Level {number} of the search space has the unknown key {sorted(unknown)[0]!r}; "
                                "known are name, layers, roles.")
        layers, roles = level.get("layers", "parent"), level.get("roles", "parent")
        for key, value, words in (("layers", layers, ("parent", "halves")), ("roles", roles, ("parent", "each"))):
            if isinstance(value, str) and value not in words:
                raise CofituneError(f"Level {number} of the search space: {key} is {value!r}; give a list, or one of "
                                    f"{', '.join(words)}.")
        if number == 1 and (isinstance(layers, str) or isinstance(roles, str)):
            raise CofituneError("The first level of the search space must list its layers and its roles.")
        levels.append(Level(
            str(level.get("name", f"level {number}")),
            layers if isinstance(layers, str) else tuple(map(str, layers)),
            roles if isinstance(roles, str) else tuple(map(str, roles)),
        ))
    return tuple(levels)


def children(level: Level, number: int, best: Candidate | None, num_layers: int) -> list[Candidate]:
    """The candidates of a level (`number` counts from 0) inside `best`; the best region itself is not repeated."""
    layers = _layers(level, best, num_layers)
    roles = _roles(level, best)
    found = [Candidate(number, role, layer, best.id if best else None) for layer in layers for role in roles]
    return [item for item in found if best is None or (item.roles, item.layers) != (best.roles, best.layers)]


def _layers(level: Level, best: Candidate | None, num_layers: int) -> list[str]:
    if not isinstance(level.layers, str):
        return list(level.layers)
    assert best is not None  # space_levels refuses a first level without lists
    return _halves(best.layers, num_layers) if level.layers == "halves" else [best.layers]


def _roles(level: Level, best: Candidate | None) -> list[str]:
    if not isinstance(level.roles, str):
        return list(level.roles)
    assert best is not None
    if level.roles == "each":
        names = [role for role, _ in best.region.layers]
        return names if len(names) > 1 else []
    return [best.roles]


def _halves(layers: str, num_layers: int) -> list[str]:
    """Both halves of a percent range (`25%-75%` -> `25%-50%`, `50%-75%`) or of an inclusive range of layers."""
    if "%" in layers:
        low, high = (float(part.rstrip("%")) for part in layers.split("-"))
        middle = (low + high) / 2
        return [f"{low:g}%-{middle:g}%", f"{middle:g}%-{high:g}%"]
    low, high = (0, num_layers - 1) if layers == "all" else (int(part) for part in (layers.split("-") * 2)[:2])
    if high <= low:
        return []
    middle = (low + high + 1) // 2
    return [f"{low}-{middle - 1}" if middle - 1 > low else f"{low}", f"{middle}-{high}" if high > middle else f"{high}"]
