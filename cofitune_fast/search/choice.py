"""Which node a search ends with, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import CofituneError
from .nodes import Node
from .race import best_first
from .uncertainty import Estimate, clearly_behind, ranked, share_of_wins, tied_with_best


@dataclass(frozen=True)
class Choice:
    """best: the node of the highest Uni. tied: those within one standard error of it, of which the smallest region is
    chosen. candidates: those that cannot be told from the best at `confidence`, all `comparisons` together. next_best:
    the highest Uni but the chosen one's. probability_best: the share of bootstrap draws in which the chosen node wins.
    fraction: of the nodes' training that the compared nodes have got (below 1 only if the budget ended).
    """

    chosen: str
    best: str
    tied: list[str]
    candidates: list[str]
    next_best: str | None
    confidence: float
    comparisons: int
    probability_best: float
    fraction: float
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "chosen"}


def choose(nodes: Mapping[str, Node], estimates: Mapping[str, Estimate], confidence: float) -> Choice:
    """Choose among the nodes that were trained longest; estimates: of every node at the end of its training."""
    longest = max((node.fraction for node in nodes.values()), default=0.0)
    if not longest:
        raise CofituneError("The search has no finished node to choose from; give a larger search.budget.")
    finished = {name: estimates[name] for name, node in nodes.items() if node.fraction == longest}
    order, tied = ranked(finished), tied_with_best(finished)
    best, chosen = order[0], best_first(finished, nodes)[0]
    behind = clearly_behind(finished, confidence)
    rest = [name for name in order if name != chosen]
    choice = Choice(
        chosen, best, tied, [name for name in order if name not in behind], rest[0] if rest else None, confidence,
        len(order) - 1, share_of_wins(finished, chosen), longest, "",
    )
    return Choice(**{**vars(choice), "sentence": _sentence(choice, nodes, finished)})


def _sentence(choice: Choice, nodes: Mapping[str, Node], estimates: Mapping[str, Estimate]) -> str:
    chosen, best = nodes[choice.chosen], nodes[choice.best]
    words = [f"{chosen.region} has "]
    if choice.chosen == choice.best:
        words.append(f"the highest Uni, {chosen.uni:.3f}")
    else:
        gap = estimates[choice.best].minus(estimates[choice.chosen])
        words.append(f"a Uni of {chosen.uni:.3f}, tied with the highest ({best.region}, ahead by {gap.value:.3f} ± "
                     f"{gap.se:.3f}), and trains fewer parameters")
    if choice.next_best is not None and choice.next_best != choice.best:
        gap = estimates[choice.chosen].minus(estimates[choice.next_best])
        words.append(f"; next is {nodes[choice.next_best].region}, {gap.value:.3f} ± {gap.se:.3f} behind")
    count = len(choice.candidates)
    if choice.comparisons:
        words.append(f". It is the best in {choice.probability_best:.0%} of the resamples; ".replace("%", " %"))
        share = f"{choice.confidence:.0%}".replace("%", " %")
        words.append(
            f"no other node can be told from the best at {share}" if count == 1 and choice.chosen == choice.best else
            f"{count} of {choice.comparisons + 1} nodes cannot be told from the best at {share}"
        )
        words.append(f" over {choice.comparisons} comparisons")
    if choice.fraction < 1:
        words.append(f". The nodes were compared at {choice.fraction:.0%} of their training".replace("%", " %"))
    return "".join(words) + "."
