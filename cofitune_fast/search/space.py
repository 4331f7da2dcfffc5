"""Search space as data: levels that say which regions to try inside the best ones so far.

A level has candidate `layers` and candidate `roles`; its children are all pairs of the two. Each is a list (or one
item) of these texts:

    layers   a range (`25%-50%`, `8-15`, `all`), or relative to the parent: `parent` (the same), `halves`, `thirds`
    roles    roles (`ffn.up+ffn.down`, `mha`, `all`), or relative to the parent: `parent` (the same), `each` (singly)

Below the first level, roles that the parent lacks are left out. In every level, regions whose roles the model lacks are
left out. Or a level lists whole `regions`, such as `ffn@40%-75%` or `full`, which are tried as they are.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CofituneError
from ..regions import DEFAULT_REGION, ROLES, Layout, Region
from ..yaml_text import read_yaml

BROAD = ("0%-50%", "25%-75%", "50%-100%")
_WORDS = {"layers": ("parent", "halves", "thirds"), "roles": ("parent", "each")}


@dataclass(frozen=True)
class Level:
    """One level of the tree; the module's docstring explains `layers`, `roles` and `regions`."""

    name: str
    layers: tuple[str, ...] = ("parent",)
    roles: tuple[str, ...] = ("parent",)
    regions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A node to try: the region `roles@layers` inside the node `parent`, at `rate_factor` times its learning rate.

    The roles "full" stand for every parameter of the model.
    """

    level: int
    roles: str
    layers: str
    parent: str | None = None
    rate_factor: float = 1.0

    @property
    def region(self) -> Region:
        return Region.full() if self.roles == "full" else Region.parse(f"{self.roles}@{self.layers}")

    @property
    def id(self) -> str:
        """Hash of the region and the rate factor, independent of the place in the tree."""
        return hashlib.sha256(f"{self.region}|{self.rate_factor:g}".encode()).hexdigest()[:10]

    def seed(self, search_seed: int) -> int:
        """Derive the node's seed from its id and the search's seed."""
        return int.from_bytes(hashlib.sha256(f"{search_seed}|{self.id}".encode()).digest()[:4], "big") >> 1


# The paper's ranges and modules (halves of the depth, then quarters, then single projections). As in its released
# scripts MHA means q, k, v and FFN means up, down. `extended` adds the gate and the attention output, three quarters of
# the depth (the upper ones freeze only the bottom), thirds, and the pairs that later studies recommend.
# `sizes` are FFNs of rising size and everything, for where a budget of memory or time decides. docs/search.md has the
# measurements behind it.
SPACES: dict[str, tuple[Level, ...]] = {
    "sizes": (
        Level("size", regions=("ffn.up+ffn.down@50%-75%", DEFAULT_REGION, "ffn@50%-100%", "ffn@25%-100%",
                               "all@25%-100%", "full")),
    ),
    "paper": (
        Level("broad range × module", BROAD, ("attn.q+attn.k+attn.v", "ffn.up+ffn.down")),
        Level("narrow range", ("halves",)),
        Level("projection", roles=("each",)),
    ),
    "extended": (
        Level("broad range × module", ("0%-75%", "25%-100%", *BROAD), ("mha", "ffn", "all")),
        Level("module", roles=("mha", "ffn", "ffn.gate+ffn.up", "ffn.up+ffn.down")),
        Level("narrow range", ("halves", "thirds")),
        Level("projection", roles=("each",)),
    ),
}


def space_levels(space: str | Sequence[dict[str, Any]]) -> tuple[Level, ...]:
    """Return the levels of a named space, of a YAML file with a list of {name, layers, roles}, or of such a list.

    Raises:
        CofituneError: the space is unknown, the file is unusable, or a level is wrong.
    """
    if isinstance(space, str):
        if space in SPACES:
            return SPACES[space]
        if Path(space).suffix.lower() in (".yaml", ".yml"):
            return space_levels(_read(Path(space)))
        nearest = difflib.get_close_matches(space, SPACES, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(SPACES)}, or give a YAML file."
        raise CofituneError(f"Unknown search space {space!r}; {hint}")
    if not space:
        raise CofituneError("The search space has no level; give at least one with layers and roles.")
    return tuple(_level(number, level) for number, level in enumerate(space, 1))


def _read(path: Path) -> list[dict[str, Any]]:
    levels = read_yaml(path, "search space")
    if not isinstance(levels, list):
        raise CofituneError(f"The search space {path} must be a list of levels, each with name, layers and roles.")
    return levels


def _level(number: int, level: Any) -> Level:
    where = f"Level {number} of the search space"
    if not isinstance(level, dict):
        raise CofituneError(f"{where} is {level!r}; it must be a mapping with name, layers, roles.")
    if unknown := set(level) - {"name", "layers", "roles", "regions"}:
        raise CofituneError(f"{where} has the unknown key {sorted(map(str, unknown))[0]!r}; "
                            "known are name, layers, roles and regions.")
    if "regions" in level:
        if len({"layers", "roles"} & set(level)):
            raise CofituneError(f"{where} has regions beside layers or roles; give one or the other.")
        return Level(str(level.get("name", f"level {number}")), regions=_regions(where, level["regions"]))
    values: dict[str, tuple[str, ...]] = {}
    for key, words in _WORDS.items():
        given = level.get(key, "parent")
        items = tuple(map(str, given if isinstance(given, list | tuple) else [given]))
        if not items:
            raise CofituneError(f"{where} has an empty list of {key}; give at least one.")
        for item in items:
            if item in words:
                if number == 1:
                    raise CofituneError("The first level of the search space must list its layers and its roles; "
                                        f"{item!r} is of a parent, and it has none.")
                continue
            try:
                Region.parse(f"ffn@{item}" if key == "layers" else f"{item}@all")
            except CofituneError:
                raise CofituneError(f"{where}: {key} has {item!r}, which is neither a {_KIND[key]} nor one of "
                                    f"{', '.join(words)}.") from None
        values[key] = items
    return Level(str(level.get("name", f"level {number}")), **values)


def _regions(where: str, given: Any) -> tuple[str, ...]:
    texts = tuple(map(str, given if isinstance(given, list | tuple) else [given]))
    if not texts:
        raise CofituneError(f"{where} has an empty list of regions; give at least one.")
    for text in texts:
        if ";" in text:
            raise CofituneError(f"{where} has the region {text!r}; a node is one ROLES@LAYERS, or full.")
        Region.parse(text)
    return texts


_KIND = {"layers": "range of layers such as 25%-50%", "roles": "sum of roles such as ffn.up+ffn.down"}


def check_space(levels: Sequence[Level], layout: Layout) -> list[str]:
    """Check a space for a model, and return why some of its regions will be left out: the model lacks their roles.

    Raises:
        CofituneError: a layer is beyond the model, or it lacks the roles of all regions of the first level.
    """
    notes: list[str] = []
    for number, level in enumerate(levels):
        texts = level.regions
        if not texts:
            layers = [item for item in level.layers if item not in _WORDS["layers"]] or ["all"]
            roles = [item for item in level.roles if item not in _WORDS["roles"]] or ["all"]
            texts = tuple(f"{role}@{layer}" for role in roles for layer in layers)
        before = len(notes)
        for region in map(Region.parse, texts):
            for _, layer_set in region.layers:
                layer_set.indices(layout.num_layers, str(region))
            try:
                region.cells(layout)
            except CofituneError as error:
                notes.append(str(error))
        if number == 0 and len(notes) - before == len(texts):
            raise CofituneError(f"No region of the search space can be trained; the first one: {notes[0]}")
    return list(dict.fromkeys(notes))


def children(
    level: Level, number: int, parent: Candidate | None, num_layers: int, present: Collection[str] = ROLES
) -> list[Candidate]:
    """List the candidates of a level inside `parent`, each region once, without the parent's own region.

    Args:
        number: index of the level, from 0.
        present: roles that the model has, of which `each` makes a candidate.
    """
    identity, factor = (parent.id, parent.rate_factor) if parent else (None, 1.0)
    if level.regions:
        pairs = [("full", "all") if Region.parse(text).is_full else tuple(text.split("@")) for text in level.regions]
    else:
        if parent is not None and parent.region.is_full:
            parent = replace(parent, roles="all")
        pairs = [(roles, layers) for layers in _layers(level, parent, num_layers)
                 for roles in _roles(level, parent, present)]
    found: dict[str, Candidate] = {}
    for roles, layers in pairs:
        candidate = Candidate(number, roles, layers, identity, factor)
        if parent is None or str(candidate.region) != str(parent.region):
            found.setdefault(str(candidate.region), candidate)
    return list(found.values())


def _layers(level: Level, parent: Candidate | None, num_layers: int) -> list[str]:
    found: list[str] = []
    for item in level.layers:
        if item == "parent":
            found.append(parent.layers)
        elif item in ("halves", "thirds"):
            found += _parts(parent.layers, num_layers, 2 if item == "halves" else 3)
        else:
            found.append(item)
    return found


def _roles(level: Level, parent: Candidate | None, present: Collection[str]) -> list[str]:
    there = [role for role, _ in parent.region.layers] if parent else []
    single = [role for role in there if role in present]
    found: list[str] = []
    for item in level.roles:
        if item == "parent":
            found.append(parent.roles)
        elif item == "each":
            found += single if len(single) > 1 else []
        elif parent is None or {role for role, _ in Region.parse(f"{item}@all").layers} <= set(there):
            found.append(item)
    return found


def _parts(layers: str, num_layers: int, count: int) -> list[str]:
    """Split a percent range (`25%-75%` -> `25%-50%`, `50%-75%`) or an inclusive range of layers into equal parts."""
    if "," in layers:
        raise CofituneError(f"The layers {layers} of the search space are several ranges, which have no halves or "
                            "thirds; list the parts themselves.")
    if "%" in layers:
        low, high = (float(part.rstrip("%")) for part in layers.split("-"))
        edges = [f"{low + (high - low) * part / count:.6g}%" for part in range(count + 1)]
        return [f"{begin}-{end}" for begin, end in itertools.pairwise(edges)]
    low, high = (0, num_layers - 1) if layers == "all" else (int(part) for part in (layers.split("-") * 2)[:2])
    size = high - low + 1
    if size < count:
        return []
    cuts = [low + size * part // count for part in range(count + 1)]
    return [f"{begin}-{end - 1}" if end - 1 > begin else f"{begin}" for begin, end in itertools.pairwise(cuts)]
