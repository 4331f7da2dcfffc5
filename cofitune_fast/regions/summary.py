"""Summary of a model's layout: for each kind of layer, which weight has which role."""

from __future__ import annotations

from typing import Any

from torch import nn

from .cells import ROLES, Part
from .layout import Layout, resolve_layout
from .region import LayerSet


def layout_summary(model: nn.Module) -> dict[str, Any]:
    """Summarise the layout of `model`, which may lie on the meta device.

    Returns {"model_type", "layers", "in_order", "kinds", "shared"} as plain values:

    - kinds: {"layers": such as "0-2,4", "roles": {role: [weights]}, "no_role": [weights]} of the layers that are alike.
      A weight is written as `model.roles` takes it, such as "self_attn.qkv_proj[0:64/192]". The weights without a role
      are those of two and more dimensions, which only the region `full` trains.
    - shared: {name of a weight: its layers}, for weights that serve several layers.

    Raises:
        CofituneError: the model has no layout, see `resolve_layout`.
    """
    layout = resolve_layout(model)
    kinds: list[dict[str, Any]] = []
    for layer in range(layout.num_layers):
        kind = _kind(layout, layer)
        mine = LayerSet(ranges=((layer, layer),))
        for known in kinds:
            if {**known, "layers": None} == {**kind, "layers": None}:
                known["layers"] |= mine
                break
        else:
            kinds.append({**kind, "layers": mine})
    shared = {cell.parameter: sorted({cell.layer, *cell.shared}) for cell in layout.cells if cell.shared}
    return {
        "model_type": layout.model_type, "layers": layout.num_layers, "in_order": layout.in_order,
        "kinds": [{**kind, "layers": str(kind["layers"])} for kind in kinds], "shared": shared,
    }  # fmt: skip


def _kind(layout: Layout, layer: int) -> dict[str, Any]:
    weights = {id(weight): name.removesuffix(".weight")
               for name, weight in layout.decoder_layer(layer).named_parameters() if weight.dim() > 1}
    cells = [cell for cell in layout.cells if cell.layer == layer]
    with_role = {id(layout.whole(cell)) for cell in cells}
    with_role |= {id(layout.tensor(cell.bias, None)) for cell in cells if cell.bias is not None}
    return {
        "layers": None,
        "roles": {role: [weights.get(id(layout.whole(cell)), cell.parameter) + _part(cell.part)
                         for cell in cells if cell.role == role]
                  for role in ROLES if any(cell.role == role for cell in cells)},
        "no_role": [name for key, name in weights.items() if key not in with_role],
    }


def _part(part: Part | None) -> str:
    return "" if part is None else f"[{part.start}:{part.stop}/{part.period}]"
