"""Types of the part `search` of report.json and search.json: every tried region, and the choice."""

from __future__ import annotations

from typing import Annotated, Any, Required

from .fields import (
    Check,
    Entry,
    Error,
    Fraction,
    Items,
    Maybe,
    Missing,
    Number,
    NumberOrNull,
    Part,
    Read,
    Text,
    Words,
    distinct,
    refuse_unknown,
)  # fmt: skip
from .scores import Figures, Scores, uni_is_the_sum


class Cost(Entry, total=False):
    """Cost of a part of a search.

    Attributes:
        flops: counted operations.
        full_sft: the same in units of one full fine-tuning.
    """

    seconds: Number
    tokens: Number
    flops: Number
    full_sft: Number


class DifferenceEntry(Entry, total=False):
    """Paired difference of Uni, or of the signal, with its standard error and the ends of its 95 % interval."""

    value: Number
    se: Number
    low: Number
    high: Number


def _share_of_training(entry: Any) -> Any:
    if not 0 < entry["fraction"] <= 1:
        raise ValueError(f"has a `fraction` of {entry['fraction']}, but it must be above 0 and at most 1")
    return entry


class SignalFigures(Entry, total=False):
    """Figures that an early rung is judged by, in nats per token; signal = -nll - drift."""

    signal: Number
    signal_se: Error
    nll: Number
    drift: Number


class RungEntry(Cost, Figures, SignalFigures, total=False):
    """Scores after a fraction of the training, and the cost of this rung alone."""

    fraction: Number


Rung = Annotated[RungEntry, Check(uni_is_the_sum), Check(_share_of_training)]


def _name_of_node(value: Any) -> str | int:
    if not isinstance(value, (str, int)):
        raise ValueError("must be a text or a number that no other node has")
    return value


class NeedEntry(Entry, total=False):
    """Predicted need of a region's whole training.

    Attributes:
        time: share of one full fine-tuning's, by counted operations.
        memory: peak bytes on the device; null where it was not planned.
    """

    time: Number
    memory: NumberOrNull


class NodeEntry(Cost, Figures, SignalFigures, total=False):
    """Tried region; the scores are those of its last rung, the cost that of all rungs.

    Attributes:
        roles, layers: the two parts of the region's text.
        rate_factor: factor of the learning rate against the search's.
        fraction: share of its training that it received.
        dropped: the reason why it was not trained further.
        tied: it is tied with the best.
        difference: its Uni less the base's, or its signal less the base's if its last rung was judged by that.
        behind: the best node's figure less its own.
    """

    id: Required[Annotated[str, Read(_name_of_node)]]
    parent: Maybe[Any]
    level: Required[int]
    level_name: Words
    label: Words
    region: Words
    roles: str
    layers: str
    rate_factor: float
    learning_rate: Number
    trained_parameters: Number
    fraction: NumberOrNull
    dropped: Words
    best_of_level: Annotated[bool, Read(bool), Missing(bool)]
    tied: Annotated[bool, Read(bool), Missing(bool)]
    difference: Maybe[DifferenceEntry]
    behind: Maybe[DifferenceEntry]
    need: Maybe[NeedEntry]
    rungs: Items[Rung]


def _complete_node(node: NodeEntry) -> NodeEntry:
    """Fill in missing names and the missing fraction of a node; without one it was trained to the end."""
    node["label"] = node["label"] or node["region"] or str(node["id"])
    node["level_name"] = node["level_name"] or f"level {node['level']}"
    ends = [rung["fraction"] for rung in node["rungs"]]
    if ends != sorted(set(ends)):
        raise ValueError(f"has rungs whose fractions are {ends}, but they must rise")
    if node.get("fraction") is None:
        node["fraction"] = ends[-1] if ends else 1.0
    return node


Node = Annotated[NodeEntry, Check(uni_is_the_sum), Check(_complete_node), Check(_share_of_training)]


class ChoiceEntry(Entry, total=False):
    """Certainty of the choice; see `search.choice.Choice`."""

    best: Maybe[Any]
    tied: Items[Any]
    candidates: Items[Any]
    fraction: NumberOrNull
    next_best: Maybe[Any]
    confidence: Fraction
    comparisons: Number
    probability_best: Fraction
    sentence: Required[Text]


class Tested(Entry, total=False):
    """Scores on the test part, which is read once, after the choice."""

    base: Required[Scores]
    chosen: Required[Scores]


class SearchEntry(Entry, total=False):
    """Search of a run.

    Attributes:
        complete: the search was not stopped early.
        stopped: the reason why it was.
        cost: cost of all nodes and of the base's scores.
        base: the base's scores on the part that the search chose on.
    """

    space: Words
    strategy: Words
    split: Words
    chosen: Maybe[Any]
    seconds: Number
    complete: Annotated[bool, Read(bool), Missing(lambda: True)]
    stopped: Words
    cost: Part[Cost]
    base: Maybe[Scores]
    choice: Maybe[ChoiceEntry]
    test: Maybe[Tested]
    nodes: Required[Annotated[list[Node], distinct("id")]]


def _one_tree(search: SearchEntry) -> SearchEntry:
    levels = {node["id"]: node["level"] for node in search["nodes"]}
    node = "the id of any node"
    for place, entry in enumerate(search["nodes"]):
        refuse_unknown([entry["parent"]], levels, f"the parent of nodes[{place}]", node)
        if entry["parent"] is not None and levels[entry["parent"]] >= entry["level"]:
            raise ValueError(f"has nodes[{place}] on level {entry['level']}, which must be above its parent's level "
                             f"{levels[entry['parent']]}")
    refuse_unknown([search["chosen"]], levels, "the chosen node", node)
    if choice := search["choice"]:
        for key in ("best", "next_best"):
            refuse_unknown([choice[key]], levels, f"choice.{key}", node)
        for key in ("tied", "candidates"):
            refuse_unknown(choice[key], levels, f"one of choice.{key}", node)
    return search


SearchPart = Annotated[SearchEntry, Check(_one_tree)]
