"""Change of the weights by training, per layer and role."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..artefacts.analysis import Change
from ..models.fingerprint import named_parameters
from ..regions import Layout, Part, part_name


def weight_change(model: nn.Module, layout: Layout, before: Mapping[str, Tensor]) -> Change:
    """Measure the change of `model` against its tensors `before`. Tensors that are not in `before` did not change.

    - "relative": {role: [layers]}, ||W1 - W0||_F / ||W0||_F of each cell, including the projection's bias. 0.0 for an
      unchanged cell or a layer without the role, None for a changed cell that was zero.
    - "share": {role: [layers]}, each cell's part of the sum of ||W1 - W0||_F^2 over all tensors. The shares of all
      cells and "rest" add up to 1, or are all 0 if nothing changed.
    - "rest": {"relative", "share"} of the tensors without a role: embedding, head and norms together.
    - "total": ||W1 - W0||_F / ||W0||_F over the whole model.

    Tensors are converted to float32 one at a time; the sums are float64.
    """
    owners: dict[str, list[tuple[tuple[int, str], Part | None]]] = {}
    for cell in layout.cells:
        owners.setdefault(cell.parameter, []).append(((cell.layer, cell.role), cell.part))
        if cell.bias is not None:
            owners.setdefault(cell.bias, []).append(((cell.layer, cell.role), cell.bias_part))
    sums: dict[tuple[int, str] | None, list[float]] = {None: [0.0, 0.0]}
    for layer in range(layout.num_layers):
        sums.update({(layer, role): [0.0, 0.0] for role in layout.roles})
    for name, weight in named_parameters(model):
        for owner, part in owners.get(name, [(None, None)]):
            mine, changed = weight.detach(), before.get(name)
            if part is not None:
                mine = part.of(mine)
                changed = before.get(part_name(name, owner[1])) if changed is None else part.of(changed)
            old = mine if changed is None else changed
            sums[owner][1] += _squares(old.float())
            if changed is not None:
                sums[owner][0] += _squares(mine.float() - old.float())
    moved = sum(changed for changed, _ in sums.values())
    everything = sum(size for _, size in sums.values())

    def table(figure: Any) -> dict[str, list[float | None]]:
        return {role: [figure(*sums[layer, role]) for layer in range(layout.num_layers)] for role in layout.roles}

    def share(changed: float, size: float) -> float:
        return changed / moved if moved else 0.0

    return {
        "relative": table(_relative), "share": table(share), "total": _relative(moved, everything),
        "rest": {"relative": _relative(*sums[None]), "share": share(*sums[None])},
    }  # fmt: skip


def _squares(tensor: Tensor) -> float:
    return tensor.double().square().sum().item()


def _relative(changed: float, size: float) -> float | None:
    return math.sqrt(changed / size) if size else (None if changed else 0.0)
