"""Tree search level by level: the children of the best nodes race for the places of the next level.

Greedy and exhaustive search are races of one rung in which no node is dropped; see `strategy`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from ..regions import Layout
from .nodes import Node
from .space import Candidate, Level, children
from .strategy import Strategy
from .uncertainty import Estimate, clearly_behind, ranked, tied_with_best


class OutOfBudget(Exception):
    """The search's budget does not cover the next step; `args[0]` says so in words."""


class Laboratory(Protocol):
    """Trains and scores nodes, which are named by their ids."""

    nodes: Mapping[str, Node]

    def admit(self, level: Level, candidates: Sequence[Candidate]) -> list[str]:
        """Create nodes for the candidates and return the ids of those that are new and worth trying."""

    def train(self, nodes: Sequence[str], end: float) -> None:
        """Train and score the nodes up to the fraction `end`.

        Raises:
            OutOfBudget: the budget is spent; finished nodes are kept.
        """

    def estimate(self, node: str, fraction: float) -> Estimate | None:
        """Return the node's Uni at `fraction` with its draws, or None if it was not scored there."""

    def drop(self, node: str, reason: str) -> None: ...


def tree_search(
    levels: Sequence[Level], layout: Layout, strategy: Strategy, lab: Laboratory, *, finish: bool = True
) -> None:
    """Train nodes level by level and fill `lab.nodes`; `choice.choose` then picks one of them.

    Args:
        finish: train the winner of a race to the end even if nothing is left to decide.
    """
    parents: list[Candidate | None] = [None]
    leaders: list[str] = []
    winners: list[str] = []
    for number, level in enumerate(levels):
        found = [child for parent in parents
                 for child in children(level, number, parent, layout.num_layers, layout.roles)]
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
        if finish or len(finalists) > 1:
            _race(finalists, [], strategy.rungs[-2:], replace(strategy, keep=1.0), lab)


def best_first(estimates: Mapping[str, Estimate], nodes: Mapping[str, Node]) -> list[str]:
    """Order nodes: first those tied with the best, smallest region first, then the others by Uni."""
    tied = tied_with_best(estimates)
    order = ranked(estimates)
    smallest = sorted(tied, key=lambda node: (nodes[node].trained_parameters, order.index(node)))
    return [*smallest, *(node for node in order if node not in tied)]


def _race(
    nodes: Sequence[str], leaders: Sequence[str], rungs: Sequence[float], strategy: Strategy, lab: Laboratory
) -> list[str]:
    """Train rung by rung until at most `beam` nodes remain, or through all rungs if the last one is 1.

    Returns survivors and leaders, best first. Leaders, the best nodes of the levels above, are trained on as far as the
    comparison needs them. A leader is dropped only if it is significantly worse on the same items. Of the nodes, at
    most the share `keep` passes a rung.
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
