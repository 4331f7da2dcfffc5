"""Preview of a search: the nodes of its space, and its likely and maximal cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import CofituneError
from ..regions import Layout, Region
from .budget import Work
from .limits import Limits, Need, fitting, nothing_fits
from .pace import Operations
from .space import Candidate, Level, check_space, children
from .strategy import Strategy
from .work import token_weights

_SURVIVING = 0.5  # guessed share of a level's nodes that pass a rung of a race


def walk(
    levels: Sequence[Level], layout: Layout, refined: Callable[[list[Candidate]], list[Candidate]] = list
) -> list[list[Candidate]]:
    """List the nodes of each level, each region once, as a search would try them.

    Args:
        refined: selects the nodes of a level whose children are tried next; by default all.
    """
    seen, parents, tree = set(), [None], []
    for number, level in enumerate(levels):
        found = []
        for parent in parents:
            for child in children(level, number, parent, layout.num_layers, layout.roles):
                try:
                    trained = trained_cells(child.region, layout)
                except CofituneError:  # a part of a range without any layer, or a role that the model lacks
                    continue
                if trained not in seen:
                    seen.add(trained)
                    found.append(child)
        if found:
            parents = refined(found)
            tree.append(found)
    return tree


def trained_cells(region: Region, layout: Layout) -> tuple[bool, frozenset[tuple[int, str]]]:
    """Key of what a region trains in a model: regions for which it is equal are one node.

    Raises:
        CofituneError: as `Region.cells`.
    """
    return region.is_full, frozenset((cell.layer, cell.role) for cell in region.cells(layout))


def likely_walk(levels: Sequence[Level], layout: Layout, strategy: Strategy) -> list[list[Candidate]]:
    """List the nodes of each level as if the last ones of each level were the best, which is not known yet."""
    return walk(levels, layout, (lambda found: found) if strategy.beam is None else lambda f: f[-strategy.beam:])


def level_work(
    candidates: Sequence[Candidate], strategy: Strategy, work: Work, layout: Layout, *, surviving: float = _SURVIVING,
) -> Operations:
    """Estimate the operations of one level.

    Args:
        surviving: share of the nodes that pass each rung; of a race only `beam` nodes are trained to the end.
    """
    total = Operations()
    for candidate in candidates:
        region, share, begin = candidate.region, 1.0, 0.0
        lowest, trained = lowest_layer(region, layout), token_weights(region.cells(layout), layout)
        for end in strategy.rungs:
            if strategy.race and end == 1.0:
                share = min(1.0, strategy.beam / len(candidates))
            step = Operations(work.training(lowest, trained, begin, end, seen=1.0),
                              work.measuring(strategy.measure(end), lowest, first=False), 1)
            total += step.times(share)
            begin, share = end, share * (surviving if strategy.race else 1.0)
    return total


def predict_need(
    work: Work, region: Region, layout: Layout, memory_need: Callable[[Region], int | None] | None
) -> Need:
    """Predict what the whole training of a region needs, with nothing cached before."""
    flops = work.training(lowest_layer(region, layout), token_weights(region.cells(layout), layout), 0.0, 1.0)
    return Need(flops / work.full_sft, memory_need(region) if memory_need is not None else None)


def lowest_layer(region: Region, layout: Layout) -> int | None:
    """Return the region's lowest layer; None for the full model, whose embeddings are trained too."""
    return None if region.is_full else min(cell.layer for cell in region.cells(layout))


def preview(
    levels: Sequence[Level], strategy: Strategy, layout: Layout, total_parameters: int,
    count: Callable[[Candidate], int], rate: Callable[[Candidate], float], work: Work | None,
    limits: Limits = Limits(), memory_need: Callable[[Region], int | None] | None = None,  # noqa: B008  (frozen)
    final: Work | None = None,
) -> dict[str, Any]:
    """Return {"nodes": rows for `display.show_space`, "totals": ..., "notes": regions that the model lacks}.

    Costs are None without `work`.

    full_sft of a node is the cost of training it to the end and scoring it once, with the layers below it cached. A
    node beyond the limits has in left_out what it needs; the likely costs are those of the others.

    Args:
        final: work with the training of the chosen region, which the limits are about; by default `work`.

    Totals:
        nodes: nodes of the whole space.
        nodes_likely: nodes that the strategy is likely to try.
        full_sft_most: cost if no node is ever dropped.
        full_sft_likely: cost if half of a level's nodes are dropped after each rung.
        full_sft_paper: cost if every child is trained and scored to the end, with nothing cached.
    """
    notes = check_space(levels, layout)
    rows, kept = [], set()
    for found in walk(levels, layout):
        needs = {}
        if work is not None:
            needs = {one: predict_need(final or work, one.region, layout, memory_need) for one in found}
        within = set(fitting(limits, needs)) if work else set(found)
        if not within and not kept:
            raise nothing_fits(limits, [(str(one.region), need) for one, need in needs.items()])
        kept |= {one.id for one in within}
        for candidate in found:
            trained = count(candidate)
            cost = None
            if work is not None:
                lowest = lowest_layer(candidate.region, layout)
                weights = token_weights(candidate.region.cells(layout), layout)
                cost = work.training(lowest, weights, 0.0, 1.0, seen=1.0) + work.scoring(lowest, first=False)
                cost /= work.full_sft
            rows.append({"id": candidate.id, "parent": candidate.parent, "level": candidate.level,
                         "level_name": levels[candidate.level].name, "region": str(candidate.region),
                         "trained_parameters": trained, "share": trained / total_parameters, "full_sft": cost,
                         "learning_rate": rate(candidate), "kind": "node",
                         "left_out": None if candidate in within else limits.describe(needs[candidate])})
    totals: dict[str, Any] = {"nodes": len(rows), "strategy": strategy.name}
    tree = [[one for one in found if one.id in kept] for found in likely_walk(levels, layout, strategy)]
    totals["nodes_likely"] = sum(map(len, tree))
    if work is not None:
        paper = Strategy("greedy", (1.0,), race=False)
        uncached = Work(**{**vars(work), "cached": False})
        for key, way, base in (("full_sft_most", 1.0, work), ("full_sft_likely", _SURVIVING, work)):
            spent = sum(level_work(found, strategy, base, layout, surviving=way).total for found in tree)
            totals[key] = (spent + work.scoring()) / work.full_sft
        greedy = sum(level_work(found, paper, uncached, layout).total for found in likely_walk(levels, layout, paper))
        totals["full_sft_paper"] = (greedy + work.scoring()) / work.full_sft
    return {"nodes": rows, "totals": totals, "notes": notes}
