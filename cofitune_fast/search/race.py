"""The tree search: level by level, the children of the best nodes race for a place in the next level.

Greedy and exhaustive search are races of one rung without dropping; see `strategy`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
            leaders = _race(candidates, leaders, strategy.rungs[:-1], strategy, lab)
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
        finalists = [node for node in winners if not lab.nodes[node].dropped]
        _race(finalists, [], strategy.rungs[-2:], replace(strategy, keep=1.0), lab)


def best_first(estimates: Mapping[str, Estimate], nodes: Mapping[str, Node]) -> list[str]:
    """Those tied with the best, the one that trains least first; then the others by Uni."""
    tied = tied_with_best(estimates)
    order = ranked(estimates)
    smallest = sorted(tied, key=lambda node: (nodes[node].trained_parameters, order.index(node)))
    return [*smallest, *(node for node in order if node not in tied)]


def _race(
    nodes: Sequence[str], leaders: Sequence[str], rungs: Sequence[float], strategy: Strategy, lab: Laboratory
) -> list[str]:
    """Train the nodes rung by rung until no more than the beam are left, or to the end where the rungs go so far; gives
    those and the leaders, best first.

    The leaders of the levels above run along as far as they are needed for comparison. They are dropped only if they
    are behind by more than chance; of the nodes no more than the share `keep` passes a rung.
    """
    running = list(nodes)
    for end in rungs:
        there = [*(leader for leader in leaders if not lab.nodes[leader].dropped), *running]
        lab.train([node for node in there if lab.estimate(node, end) is None], end)
        estimates = {node: lab.estimate(node, end) for node in there}
        if end == 1.0:
            break
        behind = clearly_behind(estimates, strategy.confidence, min(strategy.beam, len(there)))
        order = [node for node in ranked(estimates) if node in running and node not in behind]
        places = max(strategy.beam, math.ceil(strategy.keep * len(running)))
        best = ranked(estimates)[0]
        for node in there:
            if node in behind or node in order[places:]:
                gap = estimates[best].minus(estimates[node])
                lab.drop(node, f"at {end:.3g} of its training behind {lab.nodes[best].region} by {gap.value:.3f} "
                               f"± {gap.se:.3f}{'' if node in behind else ', which may be chance'}")
        running = order[:places]
        if len(running) <= strategy.beam and rungs[-1] < 1.0:
            break
    return best_first({node: estimates[node] for node in there if not lab.nodes[node].dropped}, lab.nodes)
