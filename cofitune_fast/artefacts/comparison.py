"""comparison.json: every run of a comparison, and the curves and verdicts that follow from them.

An *interval* is an estimate on the test part with its 95 % interval (see `compare.curves.draws`). FIGURE is one of
`draws.FIGURES`, of which a point has those that its runs have; MEASURE is one of `points.MEASURES`.
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
from .scores import Figures, uni_is_the_sum

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
    """The cost of a run, or the mean over runs of what they all know. preparation: what came before the
    training, such as a mask."""

    seconds: NumberOrNull
    preparation_seconds: NumberOrNull
    training_seconds: NumberOrNull
    scoring_seconds: NumberOrNull
    tokens: NumberOrNull
    trained_parameters: NumberOrNull
    peak_memory_bytes: NumberOrNull


class SuiteEntry(Figures, total=False):
    """Scores of a part. nll: per token, of the tasks that have one. drift: KL to the base in nats per token."""

    nll: dict[str, NumberOrNull]
    drift: dict[str, NumberOrNull]


Suite = Annotated[SuiteEntry, Check(uni_is_the_sum)]


class MethodEntry(Entry, total=False):
    """recipe: see `methods.recipe.Recipe`."""

    name: Required[Text]
    sentence: Words
    recipe: dict[str, Any]


class RunEntry(Entry, total=False):
    """One method on one task at one rate and seed; alpha: the interpolation that was scored. A run that is missing or
    failed has no scores, and `why` says what happened."""

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
    """at: the point that lacks the run, where this is not said by the place of the entry."""

    at: str
    seed: Required[int]
    state: Required[str]
    why: str | None


class PointEntry(Entry, total=False):
    """A learning rate (and alpha) of a method over its seeds.

    seeds: those present. interval_of: "items and seeds", "items" (one seed), or null (no run). valid: {FIGURE: mean
    over the seeds present}. test: {FIGURE: interval}. minus_base: {FIGURE: interval of the paired difference}. cost:
    the mean over the seeds present.
    """

    learning_rate: Required[Finite]
    alpha: NumberOrNull
    seeds: Required[list[int]]
    missing: Required[list[MissingRun]]
    interval_of: str | None
    valid: dict[str, NumberOrNull]
    test: Required[dict[str, Interval]]
    minus_base: Required[dict[str, Interval]]
    cost: Maybe[Cost]


class ChosenPoint(Entry, total=False):
    """The point chosen on valid; `point` is its index.

    minus_reference: {FIGURE: interval of the paired difference}. outcome: {FIGURE: ahead, level, behind or open}, by
    whether this interval holds 0 (open: it does not, but one of the two has a single seed). time_of_reference: training
    seconds as a share of the reference's, or null.
    """

    point: Required[int]
    minus_reference: Required[dict[str, Interval]]
    outcome: Required[dict[str, Outcome]]
    time_of_reference: NumberOrNull


class Chosen(Entry, total=False):
    """uni: by the highest Uni on valid. equal_spec: by the least loss of Vers among the points whose Spec is at most
    2 % below the reference's."""

    uni: Required[ChosenPoint | None]
    equal_spec: Required[ChosenPoint | None]


class CurveEntry(Entry, total=False):
    """One for each task and method. frontier: {MEASURE: indices of the points on it, by rising speciality; null is the
    base}."""

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
    """A method at the target.

    versatility: that of its frontier there, between the points named; loss: the base's less that; mean_loss: the area
    between the base's level and the frontier from the base's Spec to the target, over that width. share: {RIVAL: the
    loss as a share of the rival's, null where the rival's own loss may be none (its interval holds 0)}. difference:
    {RIVAL: versatility less the rival's, paired}. seeds: the fewest of the points named; missing: the runs that the
    whole frontier lacks. All intervals are of 95 %, one at a time; nothing corrects for the number of methods.

    outcome: {RIVAL: "ahead" or "behind" where the intervals of the two losses lie apart, which is stricter than a
    paired difference beyond 0; else "level"; "open" where they lie apart but one of the two has a single seed, whose
    interval knows nothing of other seeds; "unreached" where one of them does not come so far, and `below` has the two
    where both do}.
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
    """One for each task and MEASURE.

    target: the Spec of the reference at its best rate, less the tolerance. The *reference* is the method that the
    settings name, or the one called full SFT, or else the method with the highest Spec at its best rate; its best rate
    is the one of the highest Uni on valid. It is null, and so is the target, while no run is done.
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


class ComparisonEntry(Head, total=False):
    """split: names of the parts that rates are chosen on and that is reported. base_scores: {task: {part: scores}}."""

    title: Annotated[str, words("Comparison"), Missing(str)]
    split: Table[Words]
    tasks: Required[Annotated[list[Text], distinct()]]
    seeds: Items[int]
    methods: Required[Annotated[list[MethodEntry], distinct("name")]]
    base_scores: Table[dict[str, Suite]]
    runs: Required[list[RunEntry]]
    curves: list[Curve]
    verdicts: list[Verdict]


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
