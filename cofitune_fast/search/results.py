"""Result of a search, and its form in search.json and report.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..artefacts.search import NodeEntry, SearchEntry
from ..regions import Region
from .choice import Choice
from .ledger import BASE, COSTS
from .nodes import Node
from .uncertainty import Estimate, Measure


@dataclass
class SearchResult:
    """Result of a search.

    Attributes:
        nodes: nodes with at least one rung.
        base: the base's scores on the validation part.
        estimate: (node or "base", fraction, measure) -> its Estimate.
        scoring_base: cost of the base's scores.
        stopped: reason why the search ended early, or None.
        test: scores of the base and of the chosen node on the test part, once it has been read.
    """

    space: str
    strategy: str
    nodes: list[Node]
    choice: Choice
    base: dict[str, float]
    estimate: Callable[[str, float, Measure], Estimate] = field(repr=False)
    scoring_base: dict[str, Any]
    stopped: str | None = None
    test: dict[str, dict[str, float]] | None = None

    @property
    def chosen(self) -> Node:
        return next(node for node in self.nodes if node.id == self.choice.chosen)

    @property
    def region(self) -> Region:
        return Region.parse(self.chosen.region)

    @property
    def cost(self) -> dict[str, float]:
        return {key: self.scoring_base[key] + sum(node.total(key) for node in self.nodes) for key in COSTS}

    def to_dict(self) -> SearchEntry:
        """Return the part `search` of report.json."""
        return {
            "space": self.space,
            "strategy": self.strategy,
            "split": "valid",
            "chosen": self.choice.chosen,
            "seconds": self.cost["seconds"],
            "complete": self.stopped is None,
            "stopped": self.stopped,
            "cost": self.cost,
            "base": self.base,
            "choice": self.choice.to_dict(),
            "test": self.test,
            "nodes": [self._node(node) for node in self.nodes],
        }

    def _node(self, node: Node) -> NodeEntry:
        fields = {key: value for key, value in asdict(node).items() if key != "rungs"}
        own = self.estimate(node.id, node.fraction, node.measure)
        base, best = self.estimate(BASE, 0.0, node.measure), None
        if node.id != self.choice.best and node.fraction in self._rungs(self.choice.best):
            best = self.estimate(self.choice.best, node.fraction, node.measure)
        return {
            **fields,
            **{key: node.total(key) for key in COSTS},
            "fraction": node.fraction,
            "tied": node.id in self.choice.tied,
            "difference": own.minus(base).to_dict(),
            "behind": best.minus(own).to_dict() if best is not None else None,
            "rungs": [{"fraction": rung.fraction, **{key: rung.cost[key] for key in COSTS}, **rung.scores}
                      for rung in node.rungs],
            **node.scores,
        }

    def _rungs(self, node: str) -> list[float]:
        return [rung.fraction for one in self.nodes if one.id == node for rung in one.rungs]
