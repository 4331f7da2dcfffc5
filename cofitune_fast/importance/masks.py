"""Make one soft mask per parameter from normalised importances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..errors import CofituneError
from ..regions import Cell, Layout, Region
from .names import HEAD, NEURON, OUTPUT, unit_counts


def soft_masks(
    layout: Layout,
    region: Region,
    importances: Mapping[str, Tensor],
    layers: Sequence[int],
    *,
    down: str,
) -> dict[str, Tensor]:
    """Make masks m = 1 - I; `Importance.masks` describes their shapes.

    importances: kind -> I in [0, 1], [len(layers), units]. down: "output" or "neuron", see `Preset`.
    """
    counts = unit_counts(layout)
    for kind, values in importances.items():
        if values.shape[1] != counts[kind]:
            raise CofituneError(
                f"The importance has {values.shape[1]} units {kind} per layer, but the model has {counts[kind]}; it "
                "was measured on a model of another shape."
            )
    masks: dict[str, Tensor] = {}
    for cell in region.cells(layout):
        kind, by_row = _unit_of(cell.role, down)
        keep = 1.0 - _importance(importances, layers, cell, kind)
        if cell.role in ("attn.k", "attn.v"):
            # A KV head serves a group of query heads, and is as important as the most important of them.
            keep = keep.reshape(layout.num_key_value_heads, -1).amin(1)
        if kind == HEAD:
            keep = keep.repeat_interleave(layout.head_dim)
        keep = keep.to(layout.parameter(cell).device)
        masks[cell.parameter] = keep[:, None] if by_row else keep[None, :]
        if by_row and (bias := layout.bias(cell)):
            masks[bias[0]] = keep.clone()
    return masks


def _unit_of(role: str, down: str) -> tuple[str, bool]:
    """Kind of unit that masks a role, and True if it masks rows, False if columns."""
    if role == "ffn.down":
        return (OUTPUT, True) if down == "output" else (NEURON, False)
    return (NEURON, True) if role.startswith("ffn.") else (HEAD, role != "attn.o")


def _importance(importances: Mapping[str, Tensor], layers: Sequence[int], cell: Cell, kind: str) -> Tensor:
    if kind not in importances:
        raise CofituneError(
            f"The mask of {cell.role} needs the importance of {kind}, which was not measured (there is "
            f"{', '.join(importances)}); compute it with that unit kind or leave {cell.role} out."
        )
    if cell.layer not in layers:
        raise CofituneError(
            f"Importance was not measured in layer {cell.layer}, only in layers {', '.join(map(str, layers))}; "
            "compute it for the region to be masked."
        )
    return importances[kind][list(layers).index(cell.layer)]
