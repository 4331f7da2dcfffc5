"""Region of what another tool trains by the names of parameters, compared name by name with the model's structure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ..errors import CofituneError
from ..models.checkpoint import skeleton
from ..models.fingerprint import named_parameters
from ..models.loading import plain_folder
from ..regions import Region
from ..regions.cells import GROUPS
from ..regions.layout import Layout, resolve_layout
from .draft import Draft

_LONGEST = 500
_REPEATED_TWICE = re.compile(r"\([^()]*[+*}][^()]*\)[+*{]")

Chosen = Callable[[Mapping[str, int]], Iterable[str]]
"""Function of {name: number of elements} that returns the names of the parameters that the other tool trains."""


def pattern(text: str) -> re.Pattern[str]:
    """Compile a regular expression of a user.

    Raises:
        CofituneError: it is none, or it could take for ever to match.
    """
    if len(text) > _LONGEST or _REPEATED_TWICE.search(text):
        raise CofituneError(f"the pattern {text[:60]!r} is too long, or repeats a repetition, which can take for ever")
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise CofituneError(f"the pattern {text!r} is no regular expression ({error})") from None


def write_region(draft: Draft, key: str, chosen: Chosen) -> None:
    """Write the region whose weights the other tool trains, with a note of all that differs.

    Without the model's configuration nothing is written, since the names of its layers are not known.
    """
    try:
        model = _structure(draft.settings.get("model.path"))
        sizes = {name: tensor.numel() for name, tensor in named_parameters(model)}
        wanted = set(chosen(sizes))
        layout = resolve_layout(model)
        region = _region(layout, wanted, set(sizes))
    except CofituneError as error:
        draft.refuse(key, f"{str(error).rstrip('.')}; so the default region is trained unless you set `region` by hand")
        return
    if region is None:
        kinds = _summary(wanted, sizes) if wanted else "nothing at all"
        draft.refuse(key, f"trains {kinds}, which no region can: regions consist of the layers' projections; set "
                          "`region`, or the default one is trained")
        return
    here = {name.partition("[")[0] for name, _ in region.parameters(model)}
    differs = [f"{words}: {_summary(names, sizes)}" for words, names in (
        ("frozen here", wanted - here), ("trained here too", here - wanted)) if names]
    if differs:
        draft.change(key, "region", str(region), "; ".join(differs))
    else:
        draft.take(key, "region", str(region))


def _structure(path: Any) -> Any:
    if not path:
        raise CofituneError("the model is not named")
    try:
        return skeleton(plain_folder(path), torch.bfloat16)
    except CofituneError:
        raise
    except Exception as error:  # whatever transformers and the hub raise: offline, gated, unknown kinds
        raise CofituneError(f"the structure of {path} cannot be read ({type(error).__name__}); name a copy on the disk "
                            "by --model FOLDER") from error


def _region(layout: Layout, wanted: set[str], all_names: set[str]) -> Region | None:
    """The region of all cells whose weights are trained; None if there is none."""
    if wanted >= all_names:
        return Region.full()
    cells = [cell for cell in layout.cells if cell.parameter in wanted and not cell.shared]
    if not cells:
        return None
    exact = Region.from_cells(cells)
    short = Region.parse(_in_groups(exact, layout))
    same = [(cell.layer, cell.role) for cell in short.cells(layout)] == \
        [(cell.layer, cell.role) for cell in exact.cells(layout)]
    return short if same else exact


def _in_groups(region: Region, layout: Layout) -> str:
    """Text of a region in which a group stands for all of its roles that the model has."""
    together: dict[str, list[str]] = {}
    for role, layers in region.layers:
        whole = layers.indices(layout.num_layers, "") == set(range(layout.num_layers))
        together.setdefault("all" if whole else str(layers), []).append(role)
    terms = []
    for layers, roles in together.items():
        names = []
        for group, members in GROUPS.items():
            present = [role for role in members if role in layout.roles]
            mine = [role for role in present if role in roles]
            names += [group] if mine and mine == present else mine
        names += [role for role in roles if not any(role in members for members in GROUPS.values())]
        terms.append(f"{'+'.join(names)}@{layers}")
    return ";".join(terms)


def _summary(names: Iterable[str], sizes: Mapping[str, int]) -> str:
    """Parameters with the layers' numbers left out, such as "model.layers.N.mlp.up_proj.weight (4 layers)"."""
    counts: dict[str, int] = {}
    total = 0
    for name in names:
        kind = re.sub(r"\.\d+(?=\.)", ".N", name)
        counts[kind] = counts.get(kind, 0) + 1
        total += sizes[name]
    shown = [f"{kind} ({count} layers)" if count > 1 else kind for kind, count in sorted(counts.items())]
    more = f" and {len(shown) - 4} more kinds" if len(shown) > 4 else ""
    return f"{', '.join(shown[:4])}{more}, {total:,} parameters"
