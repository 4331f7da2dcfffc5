"""Choice of a search's best node, and how certain the choice is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from ..artefacts.search import ChoiceEntry
from ..errors import CofituneError
from .nodes import Node
from .race import best_first
from .uncertainty import Estimate, ranked, share_of_wins, surely_less, tied_with_best


@dataclass(frozen=True)
class Choice:
    """The chosen node and the statistics behind the choice.

    Attributes:
        chosen: the smallest region among `tied`.
        best: the node with the highest Uni among those trained longest, or with the highest signal where that is what
            their last rung is judged by.
        tied: nodes trained as long and within one standard error of the best.
        candidates: nodes that are not significantly worse than the best at `confidence`, over all `comparisons`
            together; each is compared with the best at the last rung that it reached.
        next_best: of the other nodes trained longest, the one least behind the chosen one at its own last rung.
        probability_best: share of bootstrap draws in which the chosen node leads all others trained as long.
        fraction: share of the training that the longest-trained nodes received; below 1 only if the budget ended.
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

    def to_dict(self) -> ChoiceEntry:
        return {key: value for key, value in asdict(self).items() if key != "chosen"}


Estimates = Callable[[str, float], Estimate | None]


def choose(
    nodes: Mapping[str, Node], estimate: Estimates, confidence: float, *, stopped: bool = False
) -> Choice:
    """Choose among the nodes that were trained longest.

    Args:
        estimate: (node, fraction of its training) -> its Estimate, or None if it was not scored there.
        stopped: the search ended because its budget was spent.

    Raises:
        CofituneError: no node was scored.
    """
    longest = max((node.fraction for node in nodes.values()), default=0.0)
    if not longest:
        raise CofituneError("The search has no finished node to choose from; give a larger search.budget.")
    finished = {name: estimate(name, longest) for name, node in nodes.items() if node.fraction == longest}
    best, chosen = ranked(finished)[0], best_first(finished, nodes)[0]
    pairs = {name: (estimate(name, node.fraction), reference) for name, node in nodes.items()
             if name != best and (reference := estimate(best, node.fraction)) is not None}
    behind = surely_less(pairs, confidence)
    gaps = {name: (-node.fraction, there.value - estimate(name, node.fraction).value) for name, node in nodes.items()
            if name != chosen and (there := estimate(chosen, node.fraction)) is not None}
    choice = Choice(
        chosen, best, tied_with_best(finished), [best, *(name for name in pairs if name not in behind)],
        min(gaps, key=gaps.get, default=None), confidence, len(pairs), share_of_wins(finished, chosen), longest, "",
    )
    return Choice(**{**vars(choice), "sentence": _sentence(choice, nodes, estimate, stopped)})


def _sentence(choice: Choice, nodes: Mapping[str, Node], estimate: Estimates, stopped: bool) -> str:
    def gap(one: str, other: str) -> str:
        """Describe the gap from `one` to `other`, at the fraction that `other` was trained to."""
        fraction = nodes[other].fraction
        found = estimate(one, fraction).minus(estimate(other, fraction))
        where = "" if fraction == choice.fraction else f" at {fraction:g} of the training"
        unit = "" if nodes[other].measure == "uni" else " nats a token"
        return f"{abs(found.value):.3f} ± {found.se:.3f}{unit} {'behind' if found.value >= 0 else 'ahead'}{where}"

    chosen, best = nodes[choice.chosen], nodes[choice.best]
    words, figure = [f"{chosen.region} has "], {"uni": "Uni", "signal": "early signal"}[chosen.measure]
    early = [node.fraction for node in nodes.values() if node.fraction < choice.fraction]
    alone = len(early) == len(nodes) - 1 > 0
    if alone:
        words.append(f"a {figure} of {chosen.figure:.3f}, measured for it alone; it was chosen by the early signal at "
                     f"{max(early):g} of the training")
    elif choice.chosen == choice.best:
        words.append(f"the highest {figure}, {chosen.figure:.3f}")
    else:
        words.append(f"{'a' if figure == 'Uni' else 'an'} {figure} of {chosen.figure:.3f}, tied with the highest "
                     f"({best.region}, {gap(choice.chosen, choice.best)}), and trains fewer parameters")
    if choice.next_best is not None and choice.next_best != choice.best:
        words.append(f"; next is {nodes[choice.next_best].region}, {gap(choice.chosen, choice.next_best)}")
    share = f"{choice.confidence:.0%}".replace("%", " %")
    count = len(choice.candidates)
    if choice.comparisons:
        words.append(
            f". All other nodes are behind it{' there' if alone else ''} by more than the sample of items explains "
            f"({share} over {choice.comparisons} comparisons)"
            if count == 1 and choice.chosen == choice.best else
            f". {count} of {choice.comparisons + 1} nodes cannot be told from the best ({share} over "
            f"{choice.comparisons} comparisons)"
        )
    if choice.fraction < 1:
        words.append(f". The budget ended when the nodes compared had {choice.fraction:g} of their training" if stopped
                     else f". The nodes compared had {choice.fraction:g} of their training")
    return "".join(words) + "."
