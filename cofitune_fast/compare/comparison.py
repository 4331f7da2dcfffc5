"""The comparison: every method on every task, at the rates of its sweep, with every seed, from one base."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from ..artefacts.comparison import ComparisonEntry, ResolutionEntry
from ..json_text import read_json, write_json
from ..methods import NamedMethod
from ..methods.entries import base_name, run_entry, scores_entry, without
from ..methods.folder import RunFolder, finished_run, folder_identity, run_file
from ..methods.forecast import Forecast
from ..methods.run import SPLITS
from ..methods.runs import Run, all_runs
from ..scoring import SuiteScores, suite_resolution
from ..search import Observer, Silent
from ..search.executors import Executor
from ..trials import TrialData, TrialSetup, Workbench
from ..trials.head import report_head
from .checks import check_method, check_tasks
from .curves.curves import curves_and_verdicts
from .curves.points import plain_name
from .curves.resolution import FIGURES as JUDGED
from .order import Place, Point, deciding, next_stage, target


@dataclass(frozen=True)
class ComparisonSettings:
    """Settings of a comparison.

    Attributes:
        tasks: {name: its data}.
        general: a file of general rows.
        importance: arguments of `Workbench.importance`.
        drift_rows: number of responses on which the KL to the base is measured, of each part's instruction tasks and of
            its speciality.
    """

    methods: Sequence[NamedMethod]
    tasks: Mapping[str, TrialData]
    seeds: Sequence[int]
    general: str | None = None
    importance: Mapping[str, Any] = field(default_factory=dict)
    title: str = "Comparison"
    drift_rows: int = 0


class Comparison:
    """A comparison in `setup.output`; `run` makes the missing runs and writes comparison.json after each.

    Args:
        bench: the base, used for its layout and rows.
        executor: trains and scores; its work is `run_method`.
    """

    def __init__(
        self, bench: Workbench, setup: TrialSetup, settings: ComparisonSettings, executor: Executor | None = None,
        observer: Observer | None = None,
    ):
        self.bench, self.setup, self.settings = bench, setup, settings
        self.executor, self.observer = executor, observer or Silent()
        self.forecast = Forecast(bench, setup, settings.methods, settings.tasks, general=settings.general)
        self.runs = all_runs(settings.methods, list(settings.tasks), settings.seeds)
        self._methods = {method.name: method for method in settings.methods}
        self._done: dict[str, dict[str, Any]] = {}  # {run id: its file without items}
        self._bases: dict[str, dict[str, Any]] = {}
        self._spent = [0.0, 0.0]  # operations and seconds of the finished runs

    def check(self) -> None:
        """Read all data and check all methods against this model, before anything is trained.

        Raises:
            CofituneError: the first thing that is wrong, in one sentence.
        """
        check_tasks(self.bench, self.settings.tasks)
        for method in self.settings.methods:
            check_method(method, next(self._benches()), self.setup, self.settings.general, self.settings.seeds[0])

    def run(self, *, make: bool = True) -> ComparisonEntry:
        """Make all missing runs in the order of `next_stage` and return the content of comparison.json.

        Args:
            make: False makes no runs and compares the finished ones.
        """
        self.check()
        with RunFolder(self.setup.output, self.identity()) as folder:
            self._score_bases(folder)
            for run in self.runs:
                if (entry := folder.find(run)) is not None:
                    self._take(run, entry)
            for job, result in self.executor.run(self._missing() if make else ()):
                self._keep(folder, job, result)
            self.observer.remaining(0.0)
            content = self.content()
            content.update(curves_and_verdicts(content, self._items(folder)))
            write_json(folder.path / "comparison.json", content)
        return content

    def content(self) -> ComparisonEntry:
        """Return the content of comparison.json without curves and verdicts."""
        runs = []
        for run in self.runs:
            entry = self._done.get(run.id) or {"state": "missing", "why": None, **dict.fromkeys(SPLITS), "cost": None}
            runs.append({**run.to_dict(), **{key: entry[key] for key in ("state", "why", *SPLITS, "cost")}})
        return {
            **report_head(self.bench, self.settings.title),
            "split": {"choose": "valid", "report": "test"},
            "tasks": list(self.settings.tasks), "seeds": list(self.settings.seeds),
            "methods": [method.to_dict() for method in self.settings.methods],
            "base_scores": {task: {split: entry[split] for split in SPLITS} for task, entry in self._bases.items()},
            "runs": runs, "curves": [], "verdicts": [], "resolution": [],
        }

    def identity(self) -> dict[str, Any]:
        """Return everything the runs depend on besides their recipes, see `RunFolder`."""
        return folder_identity(self.bench, self.setup, self.settings.tasks, self.settings.importance,
                               general=self.settings.general, drift_rows=self.settings.drift_rows)

    def plan(self) -> list[dict[str, Any]]:
        """List the runs in the order in which they would be made if all methods were equally good.

        Rows have `done` (the run is in the output folder) and `full_sft` (the predicted remaining cost in units of one
        full SFT on its task). The first of the runs that share a training carries its cost.
        """
        self.check()
        rows, waiting, seen = [], list(self.runs), set()
        while waiting:
            for run in next_stage(waiting, self.settings.methods, self.settings.seeds, {}):
                waiting.remove(run)
                done = finished_run(Path(self.setup.output), run) is not None
                training, scoring, full = self.forecast.run(run)
                ahead = 0.0 if done else (scoring + training * (run.training not in seen)) / full
                rows.append({**run.to_dict(), "done": done, "full_sft": ahead})
                if not done:
                    seen.add(run.training)
        return rows

    def resolution(self) -> list[ResolutionEntry]:
        """List what the suite of each task can show, by the base's scores alone; tasks not scored yet are left out."""
        path, found = Path(self.setup.output), []
        for task in self.settings.tasks:
            if (file := run_file(path, base_name(task))).is_file():
                run = read_json(file, "finished run", {"items": {"test": dict}})
                base = SuiteScores.from_dict(run["items"]["test"])
                found += [{"task": task, **suite_resolution(base, figure=figure).to_dict()} for figure in JUDGED]
        return found

    # Steps -----------------------------------------------------------------------------------------------------------

    def _score_bases(self, folder: RunFolder) -> None:
        jobs = []
        for task, data in self.settings.tasks.items():
            name = base_name(task)
            if folder.file(name).is_file():
                self._bases[task] = without(folder.read(name))
            else:
                jobs.append({"id": name, "task": task, "recipe": None, "data": asdict(data),
                             "drift_rows": self.settings.drift_rows})
        for job, result in self.executor.run(jobs):
            entry = {"id": job["id"], "task": job["task"], "state": "done", "why": None,
                     **scores_entry(result["scores"][0]), "cost": result["cost"]}
            folder.keep(job["id"], entry)
            self._bases[job["task"]] = without(entry)
        for task, entry in self._bases.items():
            self.observer.note(f"base on {task} (valid): Spec {entry['valid']['spec']:.3f}  "
                               f"Vers {entry['valid']['vers']:.3f}")

    def _missing(self) -> Iterator[dict[str, Any]]:
        """Yield jobs for the missing runs; each is chosen from the results known when it is asked for.

        One job trains for all runs that share the training, also those of later methods.
        """
        begun: set[str] = set()
        while waiting := [run for run in self.runs if run.id not in self._done and run.training not in begun]:
            run = next_stage(waiting, self.settings.methods, self.settings.seeds, self._points("vers"),
                             self._deciding())[0]
            begun.add(run.training)
            together = {one.alpha for one in waiting if one.training == run.training}
            yield {
                "id": run.id, "training": run.training, "recipe": self._methods[run.method].recipe.to_dict(),
                "data": asdict(self.settings.tasks[run.task]), "learning_rate": run.learning_rate, "seed": run.seed,
                "alphas": sorted(together, key=lambda alpha: (alpha is not None, alpha or 0.0)),
                "general": self.settings.general, "importance": dict(self.settings.importance),
                "drift_rows": self.settings.drift_rows,
            }

    def _keep(self, folder: RunFolder, job: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Write the runs of a job and rewrite comparison.json."""
        for run in self.runs:
            if run.training == job["training"] and run.id not in self._done:
                entry = run_entry(run, result)
                folder.keep(run.id, entry)
                self._take(run, entry)
                self.observer.note(self._line(run, entry))
        self.observer.remaining(self._remaining())
        write_json(folder.path / "comparison.json", self.content())

    def _take(self, run: Run, entry: Mapping[str, Any]) -> None:
        self._done[run.id] = without(entry)
        training, scoring, _ = self.forecast.run(run)
        self._spent[0] += training + scoring
        self._spent[1] += entry["cost"]["seconds"]

    def _deciding(self) -> dict[tuple[str, str], set[Place]]:
        """Return the places on which the current verdicts by Vers and by the instruction group rest."""
        reference = next((name for name in self._methods if plain_name(name) == "full sft"), None)
        found: dict[tuple[str, str], set[Place]] = {}
        for measure in ("vers", "instruction"):
            points = self._points(measure)
            for key, places in points.items():
                found.setdefault(key, set()).update(deciding(places, target(points, key[1], reference)))
        return found

    def _points(self, measure: str) -> dict[tuple[str, str], dict[Place, Point]]:
        """Return (Spec, versatility measure) on valid by (method, task) and place, means over the finished seeds."""
        scores: dict[tuple[str, str], dict[Place, list[Point]]] = {}
        for entry in self._done.values():
            if entry["state"] == "done":
                places = scores.setdefault((entry["method"], entry["task"]), {})
                places.setdefault((entry["learning_rate"], entry["alpha"]), []).append(
                    (entry["valid"]["spec"], entry["valid"][measure]))
        return {key: {place: (fmean(spec for spec, _ in found), fmean(kept for _, kept in found))
                      for place, found in places.items()} for key, places in scores.items()}

    def _line(self, run: Run, entry: Mapping[str, Any]) -> str:
        alpha = "" if run.alpha is None else f" alpha {run.alpha:g}"
        what = (f"Spec {entry['valid']['spec']:.3f}  Vers {entry['valid']['vers']:.3f}"
                if entry["state"] == "done" else f"failed: {entry['why']}")
        return (f"run {len(self._done)} of {len(self.runs)}: {run.method} on {run.task} at {run.learning_rate:g}"
                f"{alpha}, seed {run.seed}: {what}  ({entry['cost']['seconds']:.0f} s)")

    def _items(self, folder: RunFolder) -> dict[str, dict[str, SuiteScores]]:
        done = [run_id for run_id, entry in self._done.items() if entry["state"] == "done"]
        return {name: {split: SuiteScores.from_dict(scores) for split, scores in folder.read(name)["items"].items()}
                for name in itertools.chain(done, map(base_name, self.settings.tasks))}

    def _remaining(self) -> float | None:
        """Predict the seconds of the missing runs from the speed of the finished ones."""
        seen = {run.training for run in self.runs if run.id in self._done}
        waiting = [run for run in self.runs if run.id not in self._done]
        left = self.forecast.operations(waiting, seen)
        operations, seconds = self._spent
        return left * seconds / operations / self.executor.slots if operations else None

    def _benches(self) -> Iterator[Workbench]:
        return map(self.bench.with_data, self.settings.tasks.values())
