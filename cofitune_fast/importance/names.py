"""Kinds of unit, which cells hold them in a layer, and the check of a name against known names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..errors import CofituneError
from ..regions import Cell, Layout

NEURON = "ffn.neuron"  # row j of gate and up, column j of down
OUTPUT = "ffn.output"  # row j of down
HEAD = "attn.head"  # the head's rows of q and gate, its columns of o, and a share in a key-value head
UNITS = (NEURON, OUTPUT, HEAD)

Scores = Tensor | tuple[Tensor, ...]
"""Scores of one kind: [layers, units], or one tensor [units] per layer where the layers differ in their units."""


def units_of(layout: Layout, layer: int, kind: str) -> list[tuple[Cell, int]]:
    """Cells of a layer that hold units of a kind, in the order of the units, each with the number of its units.

    Neurons and outputs are those of every `ffn.down`; of experts [experts, ...] all neurons of the first expert come
    first. Heads are those of every `attn.o` whose inputs are whole heads. Mixers have no units.
    """
    found = []
    for cell in layout.at(layer, "attn.o" if kind == HEAD else "ffn.down"):
        block = layout.blocks[cell.block]
        if kind == HEAD:
            count = block.heads
        else:
            count = max(block.experts, 1) * (block.neurons if kind == NEURON else _outputs(layout, cell))
        if count and cell.part is None:  # a module that several roles share has no output of this one alone
            found.append((cell, count))
    return found


def unit_count(layout: Layout, layer: int, kind: str) -> int:
    """Number of units of a kind in a layer; 0 if it has none."""
    return sum(count for _, count in units_of(layout, layer, kind))


def _outputs(layout: Layout, cell: Cell) -> int:
    """Outputs of a projection; of each expert, if there are experts. A quantised weight is packed: its module knows."""
    weight = layout.whole(cell)
    return weight.shape[cell.out] if weight.is_floating_point() else layout.module(cell).out_features  # type: ignore


def joined(rows: Sequence[Tensor]) -> Scores:
    """Scores of the rows of the layers."""
    return torch.stack(list(rows)) if len({row.shape for row in rows}) == 1 else tuple(rows)


def layer_by_layer(function: Callable[..., Tensor], *scores: Scores) -> Scores:
    """Apply a function of tensors [..., units], which treats each layer by itself, to scores of either form."""
    if all(isinstance(one, Tensor) for one in scores):
        return function(*scores)
    rows = zip(*scores, strict=True)
    return tuple(function(*row) if any(one.numel() for one in row) else row[0].clone() for row in rows)


def known(name: str, names: Iterable[str], what: str) -> str:
    """Return `name` if it is one of `names`, else raise CofituneError with the nearest one. what: e.g. "unit kind"."""
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise CofituneError(f"The {what} {name!r} is not known; {hint}Known are: {', '.join(names)}.")
