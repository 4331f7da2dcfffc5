"""Change of the weights by training, per layer and role."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..models.fingerprint import named_parameters
from ..regions import Layout


def weight_change(model: nn.Module, layout: Layout, before: Mapping[str, Tensor]) -> dict[str, Any]:
    """Measure the change of `model` against its tensors `before`. Tensors that are not in `before` did not change.

    - "relative": {role: [layers]}, ||W1 - W0||_F / ||W0||_F of each cell, including the projection's bias. 0.0 for an
      unchanged cell, None for a changed cell that was zero.
    - "share": {role: [layers]}, each cell's part of the sum of ||W1 - W0||_F^2 over all tensors. The shares of all
      cells and "rest" add up to 1, or are all 0 if nothing changed.
    - "rest": {"relative", "share"} of the tensors without a role: embedding, head and norms together.
    - "total": ||W1 - W0||_F / ||W0||_F over the whole model.

    Tensors are converted to float32 one at a time; the sums are float64.
    """
    cell_of: dict[str, tuple[int, str] | None] = {}
    for key, cell in layout.cells.items():
        cell_of[cell.parameter] = key
        if bias := layout.bias(cell):
            cell_of[bias[0]] = key
    sums: dict[tuple[int, str] | None, list[float]] = {key: [0.0, 0.0] for key in (*layout.cells, None)}
    for name, weight in named_parameters(model):
        total = sums[cell_of.get(name)]
        old = before.get(name, weight).detach().float()
        total[1] += _squares(old)
        if name in before:
            total[0] += _squares(weight.detach().float() - old)
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
