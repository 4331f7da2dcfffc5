"""Nodes of a search: tried regions with their scores after each rung, and the costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .limits import Need
from .space import Candidate
from .uncertainty import Measure


@dataclass
class Rung:
    """Scores on the validation part after `fraction` of the node's training, and the cost of this rung alone.

    Attributes:
        scores: spec, vers, knowledge, reasoning, instruction and uni, each with NAME_se, or after a rung that is judged
            by the signal, signal, signal_se, nll and drift.
        cost: seconds, training_seconds, scoring_seconds, tokens, flops, full_sft and the fields that the trial adds.
    """

    fraction: float
    scores: dict[str, float]
    cost: dict[str, Any]


@dataclass
class Node:
    """A region that was tried.

    Attributes:
        need: predicted need of its whole training.
        dropped: the reason why it was not trained further, or None.
    """

    id: str
    parent: str | None
    level: int
    level_name: str
    label: str
    region: str
    roles: str
    layers: str
    learning_rate: float
    rate_factor: float
    trained_parameters: int
    need: Need | None = None
    rungs: list[Rung] = field(default_factory=list)
    dropped: str | None = None
    best_of_level: bool = False

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.level, self.roles, self.layers, self.parent, self.rate_factor)

    @property
    def scores(self) -> dict[str, float]:
        return self.rungs[-1].scores

    @property
    def measure(self) -> Measure:
        """Figure that the last rung was judged by."""
        return "uni" if "uni" in self.scores else "signal"

    @property
    def figure(self) -> float:
        """Value of `measure` after the last rung."""
        return self.scores[self.measure]

    @property
    def fraction(self) -> float:
        """Fraction of its training that the node received."""
        return self.rungs[-1].fraction if self.rungs else 0.0

    def total(self, key: str) -> float:
        """Sum a cost over all rungs; `key` is seconds, tokens, flops or full_sft."""
        return sum(rung.cost[key] for rung in self.rungs)

    @property
    def seconds(self) -> float:
        return self.total("seconds")


def short_label(roles: str, layers: str) -> str:
    """Shorten roles of one group, "attn.q+attn.k+attn.v" to "attn q+k+v"; keep all others as they are."""
    parts = [role.strip().split(".") for role in roles.split("+")]
    if all(len(part) == 2 for part in parts) and len({part[0] for part in parts}) == 1:
        roles = f"{parts[0][0]} {'+'.join(part[1] for part in parts)}"
    return f"{roles} {layers}"
