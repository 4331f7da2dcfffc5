"""MoFO: AdamW that moves only the entries with the largest momentum (Chen et al., arXiv 2407.20999, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import CofituneError
from ..optim import MaskedAdamW


class MoFO(MaskedAdamW):
    """MaskedAdamW that keeps, after each step, only the changes at the largest `share` of |momentum| in each tensor.

    The momentum is the one that the step used. The moments of all entries are updated, as in the paper. Weight decay
    acts only on the entries that move. Entries tied at the threshold all move. It costs a copy of the weights, and a
    selection of the k-th largest entry per tensor and step.

    Args:
        share: share of each tensor's entries that a step moves, in (0, 1).
        options: other arguments of MaskedAdamW.

    Raises:
        CofituneError: storage is "int8", whose momenta are too coarse to rank.
    """

    def __init__(self, params: Iterable[Any], *, share: float, **options: Any):
        if options.get("storage") == "int8":
            raise CofituneError("MoFO ranks momenta, which storage int8 keeps in coarse steps; use another storage.")
        self.share = share
        super().__init__(params, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        self.create_states()  # a weight in bf16_split consists of the parameter and its remainder
        before = [(p, [part.clone() for part in self._parts(p)])
                  for group in self.param_groups for p in group["params"]]
        loss = super().step(closure)
        for p, parts in before:
            if p.grad is not None:
                size = self.state[p]["exp_avg"].float().abs()
                kept = math.ceil(self.share * size.numel())
                still = size < size.flatten().kthvalue(size.numel() - kept + 1).values
                for now, old in zip(self._parts(p), parts, strict=True):
                    now.copy_(torch.where(still, old, now))
        return loss

    def _parts(self, p: Tensor) -> list[Tensor]:
        """Return the tensors that hold the weight: the parameter and, in bf16_split, its lower 16 bits."""
        return [p, *(self.state[p][key] for key in ("remainder",) if key in self.state[p])]
