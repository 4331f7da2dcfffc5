"""Predicted cost of runs in floating-point operations, from which the time left is estimated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ..anchor import AnchorSettings
from ..search import Work, search_work
from ..search.preview import lowest_layer
from ..trials import TrialData, TrialSetup, Workbench
from .catalogue import NamedMethod
from .run import SPLITS, what_is_trained
from .runs import Run


class Forecast:
    """Predicts the operations of runs, counted as in `search.Work`.

    Writing the anchors' texts, measuring importance and what the base makes of the task's rows are left out.

    Args:
        general: the file of general rows, for methods whose anchor has them as its texts.
    """

    def __init__(
        self, bench: Workbench, setup: TrialSetup, methods: Sequence[NamedMethod], tasks: Mapping[str, TrialData],
        splits: Sequence[str] = SPLITS, general: str | None = None,
    ):
        self._general = general
        self._bench, self._setup, self._tasks, self._splits = bench, setup, tasks, splits
        self._recipes = {method.name: method.recipe for method in methods}
        self._works: dict[tuple[str, AnchorSettings], Work] = {}
        self._known: dict[tuple[str, str], tuple[float, float, float]] = {}

    def run(self, run: Run) -> tuple[float, float, float]:
        """Return the operations of a run's training, of scoring its parts once, and of one full SFT on its task."""
        key = run.method, run.task
        if key not in self._known:
            recipe, layout = self._recipes[run.method], self._bench.layout
            work = self._work(run.task, recipe.anchor_settings(self._general))
            trained = what_is_trained(recipe, layout, run.seed)
            lowest = lowest_layer(trained, layout)
            training = work.training(lowest, trained.count(self._bench.model), 0.0, 1.0)
            bench = self._bench.with_data(self._tasks[run.task])
            longer = bench.schedule({**self._setup.training, **recipe.training}).epochs / work.epochs
            self._known[key] = (training * longer * (1 + (recipe.mix or 0.0)), work.scoring(lowest, first=False),
                                work.full_sft)
        return self._known[key]

    def whole_scoring(self, run: Run) -> float:
        """Return the operations of scoring the parts of a run's task once, with nothing cached."""
        return self._work(run.task, self._recipes[run.method].anchor_settings(self._general)).scoring()

    def operations(self, runs: Iterable[Run], trained: Iterable[str] = ()) -> float:
        """Return the operations of `runs`; runs that share a training count it once.

        Args:
            trained: digests of trainings that are already done.
        """
        total, seen = 0.0, set(trained)
        for run in runs:
            training, scoring, _ = self.run(run)
            total += scoring + training * (run.training not in seen)
            seen.add(run.training)
        return total

    def _work(self, task: str, anchor: AnchorSettings) -> Work:
        key = task, anchor
        if key not in self._works:
            bench = self._bench.with_data(self._tasks[task])
            tokens, responses = (sum(counts) for counts in zip(*map(bench.suite_tokens, self._splits), strict=True))
            work = search_work(bench, replace(self._setup, anchor=anchor), {})
            self._works[key] = replace(work, scored_tokens=tokens, scored_responses=responses)
        return self._works[key]
