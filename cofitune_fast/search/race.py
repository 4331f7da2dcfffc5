"""The tree search: level by level, the children of the best nodes race for a place in the next level.

Greedy and exhaustive search are races of one rung without dropping; see `strategy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from .nodes import Node
from .space import Candidate, Level, children
from .strategy import Strategy
from .uncertainty import Estimate, clearly_behind, ranked, tied_with_best


class OutOfBudget(Exception):
    """The search's budget does not pay for what would come next; `args[0]` says so in words."""


class Laboratory(Protocol):
    """Where nodes are tried. nodes: all of them, by id. estimates: of the nodes that have been scored at a fraction."""

    nodes: Mapping[str, Node]

    def admit(self, level: Level, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Make nodes of the candidates; gives those that are new and worth trying."""

    def train(self, candidates: Sequence[Candidate], begin: float, end: float) -> None:
        """Train and score the candidates up to the fraction `end`; raises OutOfBudget, keeping what is finished."""

    def estimate(self, node: str, fraction: float) -> Estimate | None: ...

    def drop(self, node: str, reason: str) -> None: ...


def tree_search(levels: Sequence[Level], num_layers: int, strategy: Strategy, lab: Laboratory) -> None:
    """Fill `lab.nodes`; which node is chosen of them is `choice.choose`'s to say."""
    parents: list[Candidate | None] = [None]
    incumbents: list[str] = []
    for number, level in enumerate(levels):
        found = [child for parent in parents for child in children(level, number, parent, num_layers)]
        candidates = lab.admit(level, found)
        if not candidates:
            continue
        survivors = _race(candidates, incumbents, strategy, lab)
        if strategy.race:
            pool = {node: lab.estimate(node, 1.0) for node in dict.fromkeys([*incumbents, *survivors])}
            best = best_first(pool, lab.nodes)
        else:
            best = ranked({node: lab.estimate(node, 1.0) for node in survivors})
        if survivors:
            leader = next(node for node in best if node in survivors)
            lab.nodes[leader].best_of_level = True
        incumbents = best[: strategy.beam]
        parents = [lab.nodes[node].candidate for node in incumbents]


def best_first(estimates: Mapping[str, Estimate], nodes: Mapping[str, Node]) -> list[str]:
    """Those tied with the best, the one that trains least first; then the others by Uni."""
    tied = tied_with_best(estimates)
    order = ranked(estimates)
    smallest = sorted(tied, key=lambda node: (nodes[node].trained_parameters, order.index(node)))
    return [*smallest, *(node for node in order if node not in tied)]


def _race(
    candidates: Sequence[Candidate], incumbents: Sequence[str], strategy: Strategy, lab: Laboratory
) -> list[str]:
    """The candidates that were trained to the end."""
    running = {candidate.id: candidate for candidate in candidates}
    begin = 0.0
    for end in strategy.rungs:
        lab.train(list(running.values()), begin, end)
        begin = end
        if not strategy.race:
            continue
        estimates = {node: lab.estimate(node, end) for node in [*incumbents, *running]}
        estimates = {node: estimate for node, estimate in estimates.items() if estimate is not None}
        behind = clearly_behind(estimates, strategy.confidence, min(strategy.beam or len(estimates), len(estimates)))
        best = ranked(estimates)[0]
        for node in sorted(behind & set(running)):
            gap = estimates[best].minus(estimates[node])
            lab.drop(node, f"at {end:.0%} of its training behind {lab.nodes[best].region} by {gap.value:.3f} "
                           f"± {gap.se:.3f}".replace("%", " %", 1))
            del running[node]
    return list(running)
