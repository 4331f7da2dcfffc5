"""Types of report.json, the results of one run on one base; search.json is the same with a search and no methods."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Required

from typing_extensions import TypedDict

from .fields import Check, Entry, Items, Maybe, Missing, Number, Part, Table, Text, Words, distinct, words
from .head import Head
from .scores import SCORES, Figures, FlipCount, uni_is_the_sum
from .search import DifferenceEntry, SearchPart

BASE = "base"
"""Name of the row that holds the untrained model's scores."""


class MethodEntry(Figures, total=False):
    """A method: its region, its scores on the test part, and its cost.

    Attributes:
        state: a method that failed has no scores, and its cost may be null.
        why: the reason of a failure, in a sentence.
        learning_rate, epochs: null for the base.
        run: the fields of TrainResult.
        drift, task_drift: KL to the base on responses to instructions and to the task, where it was measured.
        flips: {"vers" or group: items that flipped from the base}.
        details: {task: its score and metrics}.
    """

    name: Required[Text]
    region: str | None
    state: Annotated[Literal["done", "failed"], Missing(lambda: "done")]
    why: Maybe[str]
    trained_parameters: Number
    seconds: Number
    peak_memory_bytes: Number
    learning_rate: Number
    epochs: Number
    run: dict[str, Any] | None
    drift: dict[str, Any]
    task_drift: dict[str, Any]
    flips: Table[FlipCount]
    details: Table[dict[str, Any]]


def _scored_if_done(method: MethodEntry) -> MethodEntry:
    if method["state"] == "failed" and any(math.isfinite(method[key]) for key in SCORES):
        raise ValueError("has failed, but has scores")
    return method


Method = Annotated[MethodEntry, Check(uni_is_the_sum), Check(_scored_if_done)]


class Spread(Entry, total=False):
    """Distribution of the raw scores of a layer's units."""

    mean: Number
    p10: Number
    p50: Number
    p90: Number


Layer = TypedDict(
    "Layer",
    {
        "layer": Required[int], "ffn.neuron": Maybe[Spread], "ffn.output": Maybe[Spread],
        "attn.head": Maybe[list[Number]],
    },
    total=False,
)  # fmt: skip
"""Importance of a layer: distributions of the FFN units, and the heads one by one, normalised within the layer."""


class ImportancePart(Entry, total=False):
    """Importance in a report.

    Attributes:
        preset: the mask's normaliser.
        samples: number of rows that importance was measured on.
    """

    preset: Words
    mask_mode: Words
    samples: int | None
    layers: Required[list[Layer]]


class CheckRow(Entry, total=False):
    """Check of the delta and the merged model."""

    name: Required[Text]
    passed: Required[bool]
    detail: Words


class Pair(Entry, total=False):
    """Paired differences of two methods on the items that both were scored on, the first one's figures less the
    second one's.
    """

    first: Required[Text]
    second: Required[Text]
    spec: Required[DifferenceEntry]
    vers: Required[DifferenceEntry]
    uni: Required[DifferenceEntry]


class Split(Entry, total=False):
    """Names of the parts of the data: the one that the search chose on, and the one that is reported."""

    search: Words
    report: Words


class ReportEntry(Head, total=False):
    """Content of report.json.

    Attributes:
        complete: all methods are there; the report is rewritten after each method.
        pairs: the methods with a region against full SFT.
    """

    title: Annotated[str, words("CoFiTune report"), Missing(str)]
    complete: Annotated[bool, Missing(lambda: True)]
    split: Part[Split]
    methods: Annotated[list[Method], distinct("name")]
    pairs: Items[Pair]
    search: Maybe[SearchPart]
    importance: Maybe[ImportancePart]
    checks: Items[CheckRow]
    notes: Items[Text]


def _methods_or_search(report: ReportEntry) -> ReportEntry:
    if "methods" not in report:
        if report["search"] is None:
            raise ValueError("has no list `methods` with an entry for each method")
        report["methods"] = []
    return report


Report = Annotated[ReportEntry, Check(_methods_or_search)]
