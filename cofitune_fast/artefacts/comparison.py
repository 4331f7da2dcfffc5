"""Types of comparison.json: every run of a comparison, and the curves and verdicts that follow from them.

An *interval* is an estimate on the test part with its 95 % interval (see `compare.curves.draws`). FIGURE is one of
`draws.FIGURES`; a point has those that all its runs have. MEASURE is one of `points.MEASURES`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Required

from .fields import (
    Check,
    Entry,
    Finite,
    Items,
    Maybe,
    Missing,
    NumberOrNull,
    Table,
    Text,
    Words,
    distinct,
    refuse_unknown,
    words,
)
from .head import Head
from .scores import Figures, FlipCount, uni_is_the_sum

Outcome = Literal["ahead", "level", "behind", "open", "unreached"]


class IntervalEntry(Entry, total=False):
    value: Required[NumberOrNull]
    low: Required[NumberOrNull]
    high: Required[NumberOrNull]


def _low_to_high(interval: IntervalEntry) -> IntervalEntry:
    low, high = interval["low"], interval["high"]
    if low is not None and high is not None and low > high:
        raise ValueError(f"is an interval from {low:g} to {high:g}, which ends below where it starts")
    return interval


Interval = Annotated[IntervalEntry, Check(_low_to_high)]


class Cost(Entry, total=False):
    """Cost of a run, or the mean over runs of the fields that all of them have.

    Attributes:
        preparation_seconds: time before the training in this run; what an earlier run made is not made again.
        whole_preparation_seconds: what it took to make all that the training needs, whichever run made it: the
            anchor's texts, the base's distributions on them, importance. Null if that is not known.
        tokens: tokens of the training rows that were processed.
        anchor_tokens: tokens of the anchor's texts that were processed, if each text came equally often.
        written_tokens: tokens that the base wrote for the anchor.
    """

    seconds: NumberOrNull
    preparation_seconds: NumberOrNull
    whole_preparation_seconds: NumberOrNull
    training_seconds: NumberOrNull
    scoring_seconds: NumberOrNull
    tokens: NumberOrNull
    anchor_tokens: NumberOrNull
    written_tokens: NumberOrNull
    trained_parameters: NumberOrNull
    peak_memory_bytes: NumberOrNull


class SuiteEntry(Figures, total=False):
    """Scores of a part.

    Attributes:
        nll: NLL per token, by task, of the tasks that have one.
        drift: metrics of the KL to the base on the responses of the instruction tasks, in nats per token.
        task_drift: the same on the responses of the speciality.
    """

    nll: dict[str, NumberOrNull]
    drift: dict[str, NumberOrNull]
    task_drift: dict[str, NumberOrNull]


Suite = Annotated[SuiteEntry, Check(uni_is_the_sum)]


class MethodEntry(Entry, total=False):
    """Method of a comparison; `recipe` has the fields of `methods.recipe.Recipe`."""

    name: Required[Text]
    sentence: Words
    recipe: dict[str, Any]


class RunEntry(Entry, total=False):
    """One method on one task at one rate and seed.

    A run that is missing or failed has no scores, and `why` gives the reason.

    Attributes:
        alpha: the interpolation that was scored.
    """

    id: str
    method: Required[str]
    task: Required[str]
    learning_rate: Required[Finite]
    seed: Required[int]
    alpha: NumberOrNull
    state: Required[Literal["done", "missing", "failed"]]
    why: str | None
    valid: Suite | None
    test: Suite | None
    cost: Cost | None


class MissingRun(Entry, total=False):
    """Run that is not done.

    Attributes:
        at: the point that lacks the run, if the entry's place does not tell.
    """

    at: str
    seed: Required[int]
    state: Required[str]
    why: str | None


class SeedFlips(FlipCount, total=False):
    """Flips of a run with one seed."""

    seed: Required[int]


class FlipsEntry(Entry, total=False):
    """Items that one model answers right and another wrong, as means over seeds and for each seed.

    Attributes:
        items: number of all items.
        right_to_wrong, wrong_to_right: mean numbers of items over the seeds.
    """

    items: Required[int]
    right_to_wrong: Required[Finite]
    wrong_to_right: Required[Finite]
    seeds: Required[list[SeedFlips]]


class PointEntry(Entry, total=False):
    """A learning rate (and alpha) of a method over its seeds.

    Attributes:
        seeds: finished seeds.
        interval_of: "items and seeds", "items" (one seed), or null (no run).
        valid: {FIGURE: mean over the finished seeds}.
        test: {FIGURE: interval}.
        minus_base: {FIGURE: interval of the paired difference}.
        flips: {"vers" or group: items that flipped from the base}.
        cost: mean over the finished seeds.
    """

    learning_rate: Required[Finite]
    alpha: NumberOrNull
    seeds: Required[list[int]]
    missing: Required[list[MissingRun]]
    interval_of: str | None
    valid: dict[str, NumberOrNull]
    test: Required[dict[str, Interval]]
    minus_base: Required[dict[str, Interval]]
    flips: Table[FlipsEntry]
    cost: Maybe[Cost]


class ChosenPoint(Entry, total=False):
    """Point chosen on valid.

    Attributes:
        point: its index.
        minus_reference: {FIGURE: interval of the paired difference}.
        outcome: {FIGURE: "level" if this interval holds 0, else "ahead" or "behind", or "open" if one of the two
            methods has a single seed}.
        time_of_reference: training seconds as a share of the reference's, or null.
        flips: {"vers" or group: items that flipped from the reference's best point}; empty for that point itself.
    """

    point: Required[int]
    minus_reference: Required[dict[str, Interval]]
    outcome: Required[dict[str, Outcome]]
    time_of_reference: NumberOrNull
    flips: Table[FlipsEntry]


class Chosen(Entry, total=False):
    """Points chosen on valid.

    Attributes:
        uni: the point with the highest Uni.
        equal_spec: the point with the highest Vers among those whose Spec is at most 2 % below the reference's.
    """

    uni: Required[ChosenPoint | None]
    equal_spec: Required[ChosenPoint | None]


class CurveEntry(Entry, total=False):
    """Curve of a method on a task.

    Attributes:
        frontier: {MEASURE: indices of the points on it, by rising speciality; null is the base}.
    """

    task: Required[str]
    method: Required[str]
    points: Required[list[PointEntry]]
    frontier: Required[dict[str, list[int | None]]]
    chosen: Required[Chosen]


def _points_exist(curve: CurveEntry) -> CurveEntry:
    points = [index for line in curve["frontier"].values() for index in line if index is not None]
    points += [row["point"] for key in ("uni", "equal_spec") if (row := curve["chosen"][key])]
    strange = [index for index in points if not 0 <= index < len(curve["points"])]
    if strange:
        raise ValueError(f"names the point {strange[0]}, but has {len(curve['points'])}")
    return curve


Curve = Annotated[CurveEntry, Check(_points_exist)]


class Below(Entry, total=False):
    """Two methods at the highest Spec that both reach, where that is less than the target."""

    spec: Required[Interval]
    loss: Required[Interval]
    rival_loss: Required[Interval]
    share: Required[Interval | None]
    difference: Required[Interval]
    outcome: Required[Outcome]


class VerdictRowEntry(Entry, total=False):
    """Verdict on one method at the target Spec.

    All intervals are 95 % intervals, one at a time; nothing corrects for the number of methods.

    Attributes:
        reaches: its frontier reaches the target.
        between: the points of its frontier on either side of the target.
        seeds: smallest number of seeds of these points.
        missing: runs that the whole frontier lacks.
        versatility: versatility of its frontier at the target.
        loss: the base's versatility less that.
        mean_loss: area between the base's level and the frontier from the base's Spec to the target, divided by that
            width.
        share: {RIVAL: the loss as a share of the rival's, null where the rival's interval holds 0}.
        difference: {RIVAL: versatility less the rival's, paired}.
        outcome: {RIVAL: outcome}. "ahead" or "behind": the intervals of the two losses do not overlap, which is
            stricter than a paired difference other than 0. "level": they overlap. "open": they do not overlap, but one
            of the two has a single seed, whose interval does not cover other seeds. "unreached": one of the two does
            not reach the target.
        below: {RIVAL: the two at a Spec that both reach}, for "unreached".
    """

    method: Required[str]
    reaches: Required[bool]
    highest_spec: Required[Interval]
    between: list[str] | None
    seeds: Required[int]
    missing: list[MissingRun]
    versatility: Maybe[Interval]
    loss: Maybe[Interval]
    mean_loss: Maybe[Interval]
    share: Required[dict[str, Interval | None]]
    difference: dict[str, Interval | None]
    outcome: Required[dict[str, Outcome]]
    below: Required[dict[str, Below]]
    sentence: Required[Text]


def _judged_if_reached(row: VerdictRowEntry) -> VerdictRowEntry:
    lacking = [key for key in ("loss", "versatility", "mean_loss") if row[key] is None]
    if row["reaches"] and lacking:
        raise ValueError(f"reaches the target, but its `{lacking[0]}` is not an interval")
    return row


VerdictRow = Annotated[VerdictRowEntry, Check(_judged_if_reached)]


class Verdict(Entry, total=False):
    """Verdict on a task by one MEASURE.

    The *reference* is the method that the settings name, or the one called full SFT, or else the method with the
    highest Spec at its best rate. A method's best rate is the one with the highest Uni on valid. Reference and target
    are null while no run is done.

    Attributes:
        target: Spec of the reference at its best rate, less the tolerance.
    """

    task: Required[str]
    measure: Required[str]
    reference: Required[str | None]
    reference_rate: NumberOrNull
    tolerance: Required[Finite]
    target: Required[Interval | None]
    rivals: Required[list[str]]
    rows: Required[list[VerdictRow]]
    sentence: Required[Text]


class ResolutionEntry(Entry, total=False):
    """Smallest difference of a figure that the suite of a task can show, see `scoring.Resolution`."""

    task: Required[str]
    figure: Required[str]
    items: Required[int]
    smallest: Required[Finite]
    needed: Required[int | None]
    largest: NumberOrNull
    paired: bool
    wanted: Required[Finite]
    confidence: Required[Finite]
    sentence: Required[Text]


class ComparisonEntry(Head, total=False):
    """Content of comparison.json.

    Attributes:
        split: names of the part on which rates are chosen and of the part that is reported.
        base_scores: {task: {part: scores}}.
    """

    title: Annotated[str, words("Comparison"), Missing(str)]
    split: Table[Words]
    tasks: Required[Annotated[list[Text], distinct()]]
    seeds: Items[int]
    methods: Required[Annotated[list[MethodEntry], distinct("name")]]
    base_scores: Table[dict[str, Suite]]
    runs: Required[list[RunEntry]]
    curves: list[Curve]
    verdicts: list[Verdict]
    resolution: Items[ResolutionEntry]


def _known_methods_and_tasks(comparison: ComparisonEntry) -> ComparisonEntry:
    for key in ("curves", "verdicts"):
        if key not in comparison:
            raise ValueError(f"has no list `{key}`, which the same cofitune compare adds when it is run again")
    methods, tasks = [method["name"] for method in comparison["methods"]], comparison["tasks"]
    for key in ("runs", "curves", "verdicts"):
        for place, entry in enumerate(comparison[key]):
            named = [entry["method"]] if "method" in entry else [row["method"] for row in entry["rows"]]
            refuse_unknown(named, methods, f"the method of {key}[{place}]", "one of its methods")
            refuse_unknown([entry["task"]], tasks, f"the task of {key}[{place}]", "one of its tasks")
    return comparison


Comparison = Annotated[ComparisonEntry, Check(_known_methods_and_tasks)]
