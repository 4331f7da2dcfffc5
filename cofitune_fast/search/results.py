"""Result of a search, and its form in search.json and report.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..artefacts.search import NodeEntry, SearchEntry
from ..regions import Region
from .choice import Choice
from .ledger import COSTS
from .nodes import Node
from .uncertainty import Estimate


@dataclass
class SearchResult:
    """Result of a search.

    Attributes:
        nodes: nodes with at least one rung.
        base: the base's scores on the validation part.
        estimates: {node or "base": {fraction: Estimate}}.
        scoring_base: cost of the base's scores.
        stopped: reason why the search ended early, or None.
        test: scores of the base and of the chosen node on the test part, once it has been read.
    """

    space: str
    strategy: str
    nodes: list[Node]
    choice: Choice
    base: dict[str, float]
    estimates: dict[str, dict[float, Estimate]] = field(repr=False)
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
        own, base = self.estimates[node.id][node.fraction], self.estimates["base"][0.0]
        best = self.estimates[self.choice.best].get(node.fraction)
        return {
            **fields,
            **{key: node.total(key) for key in COSTS},
            "fraction": node.fraction,
            "tied": node.id in self.choice.tied,
            "difference": own.minus(base).to_dict(),
            "behind": best.minus(own).to_dict() if best is not None and node.id != self.choice.best else None,
            "rungs": [{"fraction": rung.fraction, **{key: rung.cost[key] for key in COSTS}, **rung.scores}
                      for rung in node.rungs],
            **node.scores,
        }
