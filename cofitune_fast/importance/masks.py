"""Make one soft mask per trained tensor from normalised importances."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import CofituneError
from ..regions import Cell, Layout, Part, Region, resolve_layout, whole_name
from .names import HEAD, NEURON, OUTPUT, Scores, unit_count, units_of

_INPUTS, _OUTPUTS = "inputs", "outputs"


def soft_masks(
    model: nn.Module, region: Region, importances: Mapping[str, Scores], layers: Sequence[int], *, down: str
) -> dict[str, Tensor]:
    """Make masks m = 1 - I; `Importance.masks` says what masks what.

    importances: kind -> I in [0, 1], of the form of `Importance.scores`. down: "output" or "neuron", see `Preset`.
    """
    layout = resolve_layout(model)
    _check_sizes(layout, importances, layers)
    owned: dict[str, dict[Part | None, Tensor]] = {}  # tensor -> masks of its parts
    unmasked = []
    for cell in region.cells(layout):
        found = _keep(layout, cell, importances, layers, down)
        if found is None:
            unmasked.append(cell.role)
            continue
        keep, along = found
        weight = layout.parameter(cell)
        shape = list(weight.shape)
        if along is _OUTPUTS:
            shape[_input_dim(layout, cell)] = 1
        else:
            experts = shape[0] if layout.whole(cell).dim() == 3 else 1
            shape = [1] * len(shape)
            shape[0], shape[_input_dim(layout, cell)] = experts, weight.shape[_input_dim(layout, cell)]
        _add(owned, cell.parameter, cell.part, keep.to(weight.device).reshape(shape))
        if along is _OUTPUTS and cell.bias is not None and (bias := layout.bias(cell)):
            _add(owned, cell.bias, cell.bias_part, keep.to(bias[1].device).reshape(bias[1].shape).clone())
    if unmasked:
        roles = ", ".join(dict.fromkeys(unmasked))
        logging.getLogger("cofitune_fast").warning(f"Weights of {roles} have no units, so no mask damps them.")
    masks = {}
    for name, tensor in region.parameters(model):
        if (parts := owned.get(whole_name(name))) is None:
            continue
        place = layout.part(name)
        part = None if place is None else place[1]
        mask = _together(parts, tensor) if part is None and None not in parts else parts.get(part)
        if mask is not None:
            masks[name] = mask if _fits(mask.shape, tensor.shape) else mask.expand(tensor.shape).contiguous()
    return masks


def _check_sizes(layout: Layout, importances: Mapping[str, Scores], layers: Sequence[int]) -> None:
    for kind, values in importances.items():
        for layer, row in zip(layers, values, strict=True):
            count = unit_count(layout, layer, kind)
            if len(row) != count:
                raise CofituneError(
                    f"The importance has {len(row)} units {kind} in layer {layer}, but the model has {count}; it was "
                    "measured on a model of another shape."
                )


def _keep(
    layout: Layout, cell: Cell, importances: Mapping[str, Scores], layers: Sequence[int], down: str
) -> tuple[Tensor, str] | None:
    """Factors of the outputs or inputs of a cell, expert by expert, and which of the two; None if it has no units."""
    kind, along = _unit_of(cell.role, down)
    start = 0
    for holder, count in units_of(layout, cell.layer, kind) if kind else []:
        if holder.block == cell.block and (cell.role not in ("ffn.down", "attn.o") or holder == cell):
            units = slice(start, start + count)
            break
        start += count
    else:
        return None
    size = layout.parameter(cell).numel() // layout.parameter(cell).shape[_input_dim(layout, cell)]  # of all experts
    block = layout.blocks[cell.block]
    groups = count
    if cell.role in ("attn.k", "attn.v"):
        groups = block.key_value_heads
        if not groups or count % groups:
            return None
    if along is _OUTPUTS and (size % groups or (kind != HEAD and size != groups)):
        return None
    keep = 1.0 - _importance(importances, layers, cell, kind)[units]
    # A key-value head serves a group of query heads, and is as important as the most important of them.
    keep = keep.reshape(groups, -1).amin(1)
    if kind == HEAD:
        width = size if along is _OUTPUTS else layout.parameter(cell).shape[_input_dim(layout, cell)]
        keep = keep.repeat_interleave(width // groups)
    return keep, along


def _unit_of(role: str, down: str) -> tuple[str, str]:
    """Kind of unit that masks a role ("" for none), and whether it masks the role's outputs or its inputs."""
    if role == "ffn.down":
        return (OUTPUT, _OUTPUTS) if down == "output" else (NEURON, _INPUTS)
    if role in ("ffn.gate", "ffn.up"):
        return NEURON, _OUTPUTS
    if role == "attn.o":
        return HEAD, _INPUTS
    return (HEAD if role in ("attn.q", "attn.gate", "attn.k", "attn.v") else ""), _OUTPUTS


def _input_dim(layout: Layout, cell: Cell) -> int:
    """Dimension of the inputs in `layout.parameter(cell)`, whose outputs may be two dimensions."""
    whole = layout.whole(cell).dim()
    inputs = (2 * whole - 3) - cell.out  # the other one of the last two
    return inputs + (layout.parameter(cell).dim() > whole and cell.out < inputs)


def _add(owned: dict[str, dict[Part | None, Tensor]], name: str, part: Part | None, mask: Tensor) -> None:
    """Note a mask. A tensor that serves several layers is as important as in the layer where it is so most."""
    masks = owned.setdefault(name, {})
    masks[part] = torch.minimum(masks[part], mask) if part in masks else mask


def _together(parts: Mapping[Part | None, Tensor], tensor: Tensor) -> Tensor:
    """Mask of a tensor whose parts have masks; 1 elsewhere."""
    shape = [1] * tensor.dim()
    for part, mask in parts.items():
        assert part is not None
        split = mask.dim() - tensor.dim()  # 1 if the part's dimension became two
        for dim in range(tensor.dim()):
            if dim == part.dim or mask.shape[dim + split * (dim > part.dim)] > 1:
                shape[dim] = tensor.shape[dim]
    whole = torch.ones(shape, device=tensor.device)
    for part, mask in parts.items():
        assert part is not None
        part.of(whole).copy_(mask)
    return whole


def _fits(mask: Sequence[int], shape: Sequence[int]) -> bool:
    """True if the optimizer takes a mask: a factor per row of the last dimension, per column, or per element."""
    lead = tuple(mask[:-1]) == tuple(shape[:-1]) or all(size == 1 for size in mask[:-1])
    return lead and mask[-1] in (1, shape[-1])


def _importance(importances: Mapping[str, Scores], layers: Sequence[int], cell: Cell, kind: str) -> Tensor:
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
