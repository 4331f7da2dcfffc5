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
    """MaskedAdamW after whose step only the largest `share` of |momentum| in each tensor has moved.

    The momentum is the one the step was made with; the moments of all entries are kept up to date, as in the paper.
    Decay acts on the entries that move; equal momenta at the border all do. Costs a copy of the weights, and a
    selection of the k-th largest entry per tensor and step. Other arguments as MaskedAdamW's.
    """

    def __init__(self, params: Iterable[Any], *, share: float, **options: Any):
        if options.get("storage") == "int8":
            raise CofituneError("MoFO ranks momenta, which storage int8 keeps in coarse steps; use another storage.")
        self.share = share
        super().__init__(params, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        self.create_states()  # a split weight is whole only with its remainder
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
        """The weight and, of one that is stored split, its lower halves."""
        return [p, *(self.state[p][key] for key in ("remainder",) if key in self.state[p])]
