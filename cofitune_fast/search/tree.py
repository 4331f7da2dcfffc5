"""The greedy tree search of CoFiTune: try every child of the best node, keep the one with the highest Uni."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from ..errors import CofituneError
from ..regions import Region
from .journal import Journal
from .space import Candidate, Level, children

SCORES = ("spec", "vers", "knowledge", "reasoning", "instruction", "uni")


@dataclass
class Node:
    """A finished node: what was trained, its scores on the validation part (with standard errors) and its cost."""

    id: str
    parent: str | None
    level: int
    level_name: str
    label: str
    region: str
    roles: str
    layers: str
    trained_parameters: int
    scores: dict[str, float]
    seconds: float
    cost: dict[str, Any] = field(default_factory=dict)
    best_of_level: bool = False

    @property
    def uni(self) -> float:
        return self.scores["uni"]

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.level, self.roles, self.layers, self.parent)

    def to_report(self) -> dict[str, Any]:
        """The node as report.json has it: the scores beside the other fields."""
        fields = asdict(self)
        return {**{key: value for key, value in fields.items() if key not in ("scores", "cost")}, **self.scores}


@dataclass
class SearchResult:
    nodes: list[Node]
    chosen: Node
    seconds: float

    @property
    def region(self) -> Region:
        return Region.parse(self.chosen.region)


class Observer(Protocol):
    """Is told how a search goes on; the display of the command line is one."""

    def level(self, level: Level, candidates: list[Candidate]) -> None: ...
    def start(self, candidate: Candidate) -> None: ...
    def finish(self, node: Node, best: Node, from_journal: bool) -> None: ...


class Silent:
    """An observer that says nothing."""

    def level(self, level: Level, candidates: list[Candidate]) -> None: ...
    def start(self, candidate: Candidate) -> None: ...
    def finish(self, node: Node, best: Node, from_journal: bool) -> None: ...


Trial = Callable[[Candidate], tuple[dict[str, float], dict[str, Any]]]


def tree_search(
    levels: tuple[Level, ...], num_layers: int, trial: Trial, journal: Journal, observer: Observer | None = None
) -> SearchResult:
    """Search level by level: the children of the best node so far, each tried once.

    trial: trains and scores a candidate and gives (scores, cost); cost has at least `trained_parameters` and
    `seconds`. Nodes that the journal holds are not tried again. The node with the highest Uni of all levels is
    chosen; of equal ones the one that trains fewer parameters.
    """
    observer = observer or Silent()
    nodes: list[Node] = []
    best_of_level: Candidate | None = None
    for number, level in enumerate(levels):
        candidates = children(level, number, best_of_level, num_layers)
        if not candidates:
            continue
        observer.level(level, candidates)
        finished = []
        for candidate in candidates:
            stored = journal.nodes.get(candidate.id)
            if stored is None:
                observer.start(candidate)
                scores, cost = trial(candidate)
                node = _node(candidate, level, scores, cost)
                journal.append(asdict(node))
            else:
                node = Node(**stored)
            finished.append(node)
            observer.finish(node, _best([*nodes, *finished]), stored is not None)
        winner = _best(finished)
        winner.best_of_level = True
        best_of_level = winner.candidate
        nodes += finished
    if not nodes:
        raise CofituneError("The search space has no node for this model; give levels with layers and roles.")
    return SearchResult(nodes, _best(nodes), sum(node.seconds for node in nodes))


def _best(nodes: list[Node]) -> Node:
    return max(nodes, key=lambda node: (node.uni, -node.trained_parameters))


def _short(roles: str) -> str:
    """"attn q+k+v" for "attn.q+attn.k+attn.v"; other texts as they are."""
    parts = [role.strip().split(".") for role in roles.split("+")]
    if all(len(part) == 2 for part in parts) and len({part[0] for part in parts}) == 1:
        return f"{parts[0][0]} {'+'.join(part[1] for part in parts)}"
    return roles


def _node(candidate: Candidate, level: Level, scores: dict[str, float], cost: dict[str, Any]) -> Node:
    keys = [key for name in SCORES for key in (name, f"{name}_se")]
    return Node(
        id=candidate.id,
        parent=candidate.parent,
        level=candidate.level,
        level_name=level.name,
        label=f"{_short(candidate.roles)} {candidate.layers}",
        region=str(candidate.region),
        roles=candidate.roles,
        layers=candidate.layers,
        trained_parameters=cost["trained_parameters"],
        scores={key: scores[key] for key in keys},
        seconds=cost["seconds"],
        cost=cost,
    )
