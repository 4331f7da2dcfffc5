"""Runs: a named method on one task at one learning rate and seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .catalogue import NamedMethod


@dataclass(frozen=True)
class Run:
    """A row of the table: one method on one task at one rate and seed; alpha: the interpolation that is scored, None
    for the trained model as it is.

    training: digest of what is trained. Two methods that train the same and differ in alpha share it.
    """

    method: str
    task: str
    learning_rate: float
    seed: int
    alpha: float | None
    training: str

    @property
    def digest(self) -> str:
        """Of what is trained and scored, whatever the method is called."""
        return hashlib.sha256(f"{self.training} {self.alpha}".encode()).hexdigest()[:12]

    @property
    def id(self) -> str:
        """For people and as a file's name; its end is the digest."""
        alpha = "" if self.alpha is None else f"-a{self.alpha:g}"
        words = "".join(c if c.isalnum() or c in "._" else "-" for c in f"{self.method}-{self.task}")
        return f"{words}-{self.learning_rate:g}-s{self.seed}{alpha}-{self.digest}"

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id, "method": self.method, "task": self.task, "learning_rate": self.learning_rate,
                "seed": self.seed, "alpha": self.alpha}


def all_runs(methods: Sequence[NamedMethod], tasks: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Every run, in the order of the configuration."""
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
