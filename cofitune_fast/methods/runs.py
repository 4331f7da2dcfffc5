"""Runs: a named method on one task at one learning rate and seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from ..artefacts.comparison import RunEntry
from .catalogue import NamedMethod


@dataclass(frozen=True)
class Run:
    """One method on one task at one learning rate and seed.

    Attributes:
        alpha: the interpolation that is scored; None stands for the trained weights.
        training: SHA-256 of the training. Runs that train the same and differ in alpha share it.
    """

    method: str
    task: str
    learning_rate: float
    seed: int
    alpha: float | None
    training: str

    @property
    def digest(self) -> str:
        """Hash of what is trained and scored, independent of the method's name."""
        return hashlib.sha256(f"{self.training} {self.alpha}".encode()).hexdigest()[:12]

    @property
    def id(self) -> str:
        """Readable name, also used as a file name; it ends with the digest."""
        alpha = "" if self.alpha is None else f"-a{self.alpha:g}"
        words = "".join(c if c.isalnum() or c in "._" else "-" for c in f"{self.method}-{self.task}")
        return f"{words}-{self.learning_rate:g}-s{self.seed}{alpha}-{self.digest}"

    def to_dict(self) -> RunEntry:
        """Return the fields that identify the run; state and scores are added later."""
        return {"id": self.id, "method": self.method, "task": self.task, "learning_rate": self.learning_rate,
                "seed": self.seed, "alpha": self.alpha}


def all_runs(methods: Sequence[NamedMethod], tasks: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """List every run in the order of the configuration."""
    runs = []
    for method in methods:
        alphas = method.recipe.alphas or (None,)
        for task in tasks:
            for rate in method.recipe.learning_rates:
                for seed in seeds:
                    content = json.dumps([method.recipe.digest, task, float(rate), seed])
                    training = hashlib.sha256(content.encode()).hexdigest()
                    runs += [Run(method.name, task, float(rate), seed, alpha, training) for alpha in alphas]
    return runs
