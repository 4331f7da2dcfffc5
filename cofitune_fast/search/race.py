"""The tree search: level by level, the children of the best nodes race for a place in the next level.

Greedy and exhaustive search are races of one rung without dropping; see `strategy`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from .nodes import Node
from .space import Candidate, Level, children
from .strategy import Strategy
from .uncertainty import Estimate, clearly_behind, ranked, tied_with_best


class OutOfBudget(Exception):
    """The search's budget does not pay for what would come next; `args[0]` says so in words."""


class Laboratory(Protocol):
    """Where nodes are tried, and known by their ids."""

    nodes: Mapping[str, Node]

    def admit(self, level: Level, candidates: Sequence[Candidate]) -> list[str]:
        """Make nodes of the candidates; gives those that are new and worth trying."""

    def train(self, nodes: Sequence[str], end: float) -> None:
        """Train and score the nodes up to the fraction `end`; raises OutOfBudget, keeping what is finished."""

    def estimate(self, node: str, fraction: float) -> Estimate | None:
        """None if the node was not scored there."""

    def drop(self, node: str, reason: str) -> None: ...


def tree_search(levels: Sequence[Level], num_layers: int, strategy: Strategy, lab: Laboratory) -> None:
    """Fill `lab.nodes`; which of them is chosen is `choice.choose`'s to say."""
    parents: list[Candidate | None] = [None]
    leaders: list[str] = []
    winners: list[str] = []
    for number, level in enumerate(levels):
        found = [child for parent in parents for child in children(level, number, parent, num_layers)]
        candidates = lab.admit(level, found)
        if not candidates:
            continue
        if strategy.race:
            leaders = _race([*leaders, *candidates], strategy.rungs[:-1], strategy, lab, until=strategy.beam)
        else:
            for end in strategy.rungs:
                lab.train(candidates, end)
            leaders = ranked({node: lab.estimate(node, 1.0) for node in candidates})
        if (first := next((node for node in leaders if node in candidates), None)) is not None:
            lab.nodes[first].best_of_level = True
        leaders = leaders[: strategy.beam]
        winners += [node for node in leaders if node not in winners]
        parents = [lab.nodes[node].candidate for node in leaders]
    if strategy.race:
        _race([node for node in winners if not lab.nodes[node].dropped], strategy.rungs, strategy, lab)


def best_first(estimates: Mapping[str, Estimate], nodes: Mapping[str, Node]) -> list[str]:
    """Those tied with the best, the one that trains least first; then the others by Uni."""
    tied = tied_with_best(estimates)
    order = ranked(estimates)
    smallest = sorted(tied, key=lambda node: (nodes[node].trained_parameters, order.index(node)))
    return [*smallest, *(node for node in order if node not in tied)]


def _race(
    nodes: Sequence[str], rungs: Sequence[float], strategy: Strategy, lab: Laboratory, until: int = 0
) -> list[str]:
    """Train the nodes rung by rung; gives those that are left, best first. With `until` the race is over when no more
    than that are left, or all that are left are tied.

    Nodes that have been further already, in an earlier race, wait for the others to come up.
    """
    running = list(nodes)
    estimates: dict[str, Estimate] = {}
    for end in rungs:
        lab.train([node for node in running if lab.estimate(node, end) is None], end)
        estimates = {node: lab.estimate(node, end) for node in running}
        behind = clearly_behind(estimates, strategy.confidence, min(strategy.beam, len(running)))
        order = [node for node in ranked(estimates) if node not in behind]
        chance = order[max(strategy.beam, math.ceil(strategy.keep * len(running))):]
        best = ranked(estimates)[0]
        for node in running:
            if node in behind or node in chance:
                gap = estimates[best].minus(estimates[node])
                lab.drop(node, f"at {end:.3g} of its training behind {lab.nodes[best].region} by {gap.value:.3f} "
                               f"± {gap.se:.3f}{', which may be chance' if node in chance else ''}")
        running = [node for node in order if node not in chance]
        estimates = {node: estimates[node] for node in running}
        if until and (len(running) <= until or len(tied_with_best(estimates)) == len(running)):
            break
    return best_first(estimates, lab.nodes)
