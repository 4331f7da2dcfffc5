"""Figures of a run over all its parts: a resumed run goes on counting where its checkpoint stopped."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .mean import Mean


class Figures:
    """Sums of a run, which a checkpoint carries.

    Attributes:
        loss: the losses of all micro-batches; their sum over the steps is the mean loss.
        anchor_kl, reference_kl: mean KLs per token, in nats.
        skipped: number of steps that changed nothing because their gradients were not finite.
    """

    def __init__(self) -> None:
        self.loss, self.anchor_kl, self.reference_kl = Mean(), Mean(), Mean()
        self._skipped: Tensor | int = 0
        self._before, self._start = 0.0, time.perf_counter()

    def start(self) -> None:
        """Start the clock of this part of the run."""
        self._start = time.perf_counter()

    def add_norm(self, norm: Tensor) -> None:
        """Count a step by the norm of its gradients, 0-d; it stays on its device."""
        self._skipped = self._skipped + ~norm.detach().isfinite()

    @property
    def skipped(self) -> int:
        return int(self._skipped)

    @property
    def seconds(self) -> float:
        """Wall-clock time of the training in all its parts."""
        return self._before + time.perf_counter() - self._start

    def state(self) -> dict[str, Any]:
        """Return the sums as JSON values."""
        return {"loss": self.loss.state(), "anchor_kl": self.anchor_kl.state(),
                "reference_kl": self.reference_kl.state(), "skipped": self.skipped, "seconds": self.seconds}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from the sums of a checkpoint."""
        for name in ("loss", "anchor_kl", "reference_kl"):
            getattr(self, name).load(state[name])
        self._skipped, self._before = state["skipped"], state["seconds"]
