"""The main job on one base: search, train the best region with and without protection, contrast, check, report.

Everything is kept in one folder. A second call with the same settings resumes where the first one stopped:

    journal.jsonl            the search (see search.run)       importance.safetensors   scores of the units
    identity.json, runs/     one file per finished method      delta/, delta-coarse/    the trained regions
    checks.json              verification of the delta         merged/                  base and delta in one model
    report.json              all results, rewritten after every method
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..artefacts.run import BASE, CheckRow, ImportancePart, MethodEntry, ReportEntry
from ..errors import CofituneError
from ..files import require_room, writable_folder
from ..importance import Importance
from ..json_text import read_json, write_json
from ..methods import NamedMethod, Recipe, run_method
from ..methods.entries import base_name, flips_entry, run_entry, scores_entry
from ..methods.folder import RunFolder, folder_identity
from ..methods.forecast import Forecast
from ..methods.recipe import MaskSettings
from ..methods.runs import Run, all_runs
from ..planning.out_of_memory import is_out_of_memory
from ..regions import Region
from ..scoring.results import SUMMARY
from ..search import Journal, Observer, Operations, Search, SearchResult, Silent
from ..training import decisive
from ..trials import BaseLost, TrialSetup, Workbench, clean_node
from ..trials.data import content_digest
from ..trials.head import command_line, report_head
from .checks import check_delta
from .clock import Clock
from .rows import against_full, failed_row, method_row, resolution_notes

TASK, SPLITS = "task", ("test",)
COARSE, FINE, FULL = "CoFiTune coarse", "CoFiTune fine", "full SFT"
_CHECKS = "checks"
DELTAS = {COARSE: "delta-coarse", FINE: "delta"}


_OUT_OF_MEMORY = ("Out of memory before or after the training itself. `cofitune plan --fit` tells what fits; full SFT "
                  "is left out by run.full_sft: false.")


@dataclass(frozen=True)
class PipelineSettings:
    """Choice of what a run trains, besides its setup.

    "CoFiTune fine" is "CoFiTune coarse" plus the mask of `preset` and the setup's loss and anchor. Coarse and full SFT
    are plain.

    Attributes:
        region: what to train where there is no search.
        full_sft: train full SFT too.
        full_sft_training: training arguments of full SFT, over those of the setup; also the unit of the search's costs.
        importance: arguments of `Workbench.importance`.
        importance_file: importance that was measured before.
        preset: the mask's normaliser, or "none".
        mask_mode: where the mask acts, "update" or "gradient".
    """

    region: str | None = None
    full_sft: bool = True
    full_sft_training: Mapping[str, Any] = field(default_factory=dict)
    importance: Mapping[str, Any] = field(default_factory=dict)
    importance_file: str | None = None
    preset: str = "none"
    mask_mode: str = "update"


class Pipeline:
    """One run in the folder of `setup`; `run()` does everything, the other methods are its steps.

    Args:
        setup: setup of the final runs.
        tree_search: a search on the same bench and in the same folder; not needed if the settings name a region.
    """

    def __init__(
        self, bench: Workbench, setup: TrialSetup, settings: PipelineSettings, observer: Observer | None = None,
        tree_search: Search | None = None,
    ):
        if tree_search is None and settings.region is None:
            raise CofituneError("Nothing to train: give a region, or a search space.")
        self.bench, self.setup, self.settings, self.tree_search = bench, setup, settings, tree_search
        self.output = writable_folder(setup.output)
        self.observer = observer or Silent()
        self.clock = Clock()

    # The whole ---------------------------------------------------------------------------------------------------

    def run(self, title: str = "CoFiTune run") -> ReportEntry:
        """Do all steps and return the content of report.json.

        A method that cannot be trained becomes a row with the reason, and the other methods go on.
        """
        start = time.perf_counter()
        if self._protected(Region.full(), 1.0) and not (self.output / "merged").is_dir():
            size = self.bench.total_parameters * getattr(torch, self.bench.base.dtype).itemsize
            require_room(self.output, size, "the merged model")
        with RunFolder(self.output, self._identity()) as folder:
            self._plan_time()
            search = self._search(finish=False)  # the final runs train the chosen region anyway
            # The test part is read only from here on, so the search cannot have used it.
            report: ReportEntry = {
                **self._head(title), "complete": False, "methods": [self._base_row(folder)],
                "pairs": [], "search": search.to_dict() if search else None, "importance": None, "checks": [],
                "notes": [],
            }
            importance = self._importance()
            report["importance"] = self._importance_part(importance)
            runs = self._methods(search)
            for run, method in runs:
                report["methods"].append(self._row(folder, run, method))
                finished = {one.name: folder.read(made.id) for made, one in runs if folder.file(made.id).is_file()}
                report["pairs"] = against_full(finished, FULL)
                shown = resolution_notes(folder.read(base_name(TASK)), finished.values())
                if method.name == FINE:
                    report["checks"] = self._checks(run, report["methods"][-1])
                    self._finished(_CHECKS)
                self._write(report, start, shown)
            if search is not None:
                clean_node(self.tree_search.setup, search.choice.chosen)  # the final runs began anew
            report["complete"] = True
            self._write(report, start, shown)
        return report

    def search(self, title: str = "CoFiTune search") -> SearchResult:
        """Do the search alone, in the same journal that `run` uses.

        At its end the base and the chosen node are scored on the test part. Writes search.json, a report without
        methods.
        """
        result = self._search(finish=True)
        if result is None:
            raise CofituneError("No search space is set; give search.space.")
        if self.bench.data.test and self.bench.data.versatility_test:
            self.observer.stage("Base and chosen node (test)")
            self.tree_search.test(result)
        write_json(self.output / "search.json", {**self._head(title), "methods": [], "search": result.to_dict()})
        return result

    # Steps ---------------------------------------------------------------------------------------------------------

    def _search(self, *, finish: bool) -> SearchResult | None:
        if self.tree_search is None:
            return None
        self.observer.stage("Tree search (valid)")
        self.tree_search.observer, self.tree_search.later = self.observer, self.clock.left
        with Journal(self.output, self._search_identity()) as journal:
            result = self.tree_search.run(journal, finish=finish)
        self.clock.search = self.tree_search.ledger.pace
        return result

    def _base_row(self, folder: RunFolder) -> MethodEntry:
        name = base_name(TASK)
        if not folder.file(name).is_file():
            self.observer.stage("Scores of the base (test)")
            result = run_method(self.bench, self.setup, {**self._shared_job(name), "recipe": None})
            folder.keep(name, {"id": name, "task": TASK, "state": "done", "why": None,
                               **scores_entry(result["scores"][0]), "cost": result["cost"], "training": None})
        found = folder.read(name)
        self._finished(BASE, found["cost"])
        return method_row(BASE, None, found)

    def _importance(self) -> Importance | None:
        if self.settings.preset == "none":
            return None
        path = self._importance_file()
        if self.settings.importance_file or path.is_file():
            importance = Importance.load(path)
            importance.check(self.bench.base.fingerprint, self.bench.base.model)
            return importance
        self.observer.stage("Importance of the units")
        importance = self.bench.importance(**self.settings.importance)
        importance.save(path)
        return importance

    def _importance_file(self) -> Path:
        return Path(self.settings.importance_file or self.output / "importance.safetensors")

    def _methods(self, search: SearchResult | None) -> list[tuple[Run, NamedMethod]]:
        """List the methods and their runs: the plain region, the protected region, full SFT."""
        region = search.region if search else Region.parse(self.settings.region)
        rate = self.bench.schedule(self.setup.training, full=region.is_full).learning_rate
        if search is not None:
            rate = self.tree_search.rate(search.chosen.candidate, rate)
        return _runs([
            NamedMethod(COARSE, "", Recipe(region=str(region), learning_rates=(rate,))),
            *self._protected(region, rate), *self._full(),
        ], self.bench.schedule(self.setup.training).seed)

    def _protected(self, region: Region, rate: float) -> list[NamedMethod]:
        """Return the region with the run's mask, loss and anchor, or nothing if the run has none of them."""
        setup, settings = self.setup, self.settings
        recipe = Recipe(
            region=str(region), loss=setup.loss, anchor=asdict(setup.anchor) if setup.anchor.weight else None,
            mask=MaskSettings(settings.preset, settings.mask_mode) if settings.preset != "none" else None,
            learning_rates=(rate,),
        )
        plain = recipe.loss == "ce" and recipe.anchor is None and recipe.mask is None
        return [] if plain else [NamedMethod(FINE, "", recipe)]

    def _full(self) -> list[NamedMethod]:
        if not self.settings.full_sft:
            return []
        given = dict(self.settings.full_sft_training)
        rate = self.bench.schedule({**self.setup.training, **given}, full=True).learning_rate
        given.pop("learning_rate", None)
        return [NamedMethod(FULL, "", Recipe(training=given, learning_rates=(rate,)))]

    def _row(self, folder: RunFolder, run: Run, method: NamedMethod) -> MethodEntry:
        """Return the row of a method from its file, or train it from the base and score it on the test part."""
        region = Region.parse(method.recipe.region)
        if folder.find(run) is None:
            self.observer.stage(f"{method.name}: {region.describe(self.bench.model)}")
            try:
                folder.keep(run.id, run_entry(run, run_method(self.bench, self.setup, self._job(folder, run, method))))
            except BaseLost:
                raise
            except (CofituneError, RuntimeError, MemoryError) as error:
                if not isinstance(error, CofituneError) and not is_out_of_memory(error):
                    raise
                self._finished(method.name)
                why = str(error) if isinstance(error, CofituneError) else _OUT_OF_MEMORY
                self.observer.note(f"{method.name} failed: {why}")
                return failed_row(method.name, region, why)
        found = folder.read(run.id)
        self._finished(method.name, found["cost"] if found["state"] == "done" else None)
        row = method_row(method.name, region, found)
        if found["items"]:
            row["flips"] = flips_entry(folder.read(base_name(TASK))["items"]["test"], found["items"]["test"])
        return row

    def _shared_job(self, name: str) -> dict[str, Any]:
        return {"id": name, "data": asdict(self.bench.data), "drift_rows": 0, "splits": SPLITS}

    def _job(self, folder: RunFolder, run: Run, method: NamedMethod) -> dict[str, Any]:
        recipe = method.recipe
        job = {
            **self._shared_job(run.id), "recipe": recipe.to_dict(), "learning_rate": run.learning_rate,
            "seed": run.seed, "data_seed": self.bench.schedule(self.setup.training).data_seed, "alphas": [None],
            "general": None, "importance": dict(self.settings.importance),
            "importance_file": str(self._importance_file()) if recipe.mask else None,
        }
        if method.name in DELTAS:
            job["delta"] = {
                "folder": str(self.output / DELTAS[method.name]), "name": method.name,
                "scores": _summary(folder.read(base_name(TASK))["test"]),
                "settings": {
                    "command": command_line(),
                    "training": {**self.setup.training, **recipe.training, "learning_rate": run.learning_rate},
                    "mask": {"preset": recipe.mask.preset, "mode": recipe.mask.mode} if recipe.mask else None,
                    "loss": recipe.loss, "anchor": recipe.anchor, "storage": self.setup.storage,
                },
            }
        return job

    def _checks(self, run: Run, row: MethodEntry) -> list[CheckRow]:
        """Return the checks of the delta of CoFiTune fine, made once for each run of it."""
        if row["state"] == "failed":
            return []
        path, merged = self.output / "checks.json", self.output / "merged"
        known = read_json(path, "list of checks", {"checks": [{"passed": bool}]}) if path.is_file() else {}
        passed = known and all(check["passed"] for check in known["checks"])
        if known.get("run") != run.id or not passed:
            self.observer.stage("Delta merged, reloaded and scored again")
            if known.get("run") not in (None, run.id) and merged.is_dir():
                shutil.rmtree(merged)  # it belongs to an earlier run
            known = {"run": run.id, "checks": check_delta(self.bench, row, self.output / DELTAS[FINE], merged)}
            write_json(path, known)
        return known["checks"]

    # Bookkeeping -----------------------------------------------------------------------------------------------------

    def _head(self, title: str) -> dict[str, Any]:
        return {**report_head(self.bench, title), "split": {"search": "valid", "report": "test"}}

    def _write(self, report: ReportEntry, start: float, shown: list[str]) -> None:
        report["notes"] = [
            *shown,
            "Every method ran at the one learning rate given to it; the order of the methods may depend on the rates.",
            "One seed. The search chose on the valid part only; every figure of the table is on the test part.",
            f"This call took {time.perf_counter() - start:.0f} s; results kept from an earlier call of the same run "
            "are not in it.",
        ]
        write_json(self.output / "report.json", report)

    def _identity(self) -> dict[str, Any]:
        """Return everything the folder's results depend on; a folder with another identity is refused.

        It extends `folder_identity` by the settings of the methods, because the folder holds only one delta.
        """
        setup, settings, importance = self.setup, self.settings, dict(self.settings.importance)
        if settings.importance_file:
            importance["file"] = content_digest(Path(settings.importance_file))
        shared = folder_identity(self.bench, setup, {TASK: self.bench.data}, importance, splits=SPLITS)
        return {**shared, "settings": {
            **shared["settings"], "region": settings.region, "training": decisive(setup.training),
            "mask": [settings.preset, settings.mask_mode],
            "loss": setup.loss, "anchor": setup.anchor.identity(),
        }}

    def _search_identity(self) -> dict[str, Any]:
        """Return everything the search depends on; the journal refuses another identity."""
        shared = folder_identity(self.bench, self.tree_search.setup, {TASK: self.bench.data}, {})
        return {**shared["settings"], "data": shared["tasks"][TASK], "search": self.tree_search.identity()}

    def _plan_time(self) -> None:
        """Estimate the operations of the final runs, for the prediction of the time left.

        Where a search is still to choose the region, a region of about the likely size stands in.
        """
        region = self.settings.region or str(self.tree_search.likely)
        methods = [NamedMethod(COARSE, "", Recipe(region=region, learning_rates=(1.0,))),
                   *self._protected(Region.parse(region), 1.0), *self._full()]
        forecast = Forecast(self.bench, self.setup, methods, {TASK: self.bench.data}, SPLITS)
        for run in all_runs(methods, [TASK], [0]):
            training, scoring, _ = forecast.run(run)
            self.clock.waiting[run.method] = Operations(training, scoring, 1)
            self.clock.waiting[BASE] = Operations(scoring=forecast.whole_scoring(run))
            if run.method == FINE:
                self.clock.waiting[_CHECKS] = self.clock.waiting[BASE]  # the merged model is scored as the base was

    def _finished(self, job: str, cost: Mapping[str, Any] | None = None) -> None:
        self.clock.finish(job, cost)
        self.observer.remaining(self.clock.remaining)

    def _importance_part(self, importance: Importance | None) -> ImportancePart | None:
        if importance is None:
            return None
        normalized = importance.normalized(self.settings.preset)
        layers = []
        for row, layer in enumerate(importance.layers):
            entry: dict[str, Any] = {"layer": layer}
            for kind, scores in importance.scores.items():  # an importance from a file may lack a kind
                if not scores[row].numel():
                    continue
                if kind == "attn.head":
                    entry[kind] = normalized[kind][row].tolist()
                    continue
                raw = scores[row]
                low, middle, high = raw.quantile(raw.new_tensor([0.1, 0.5, 0.9])).tolist()
                entry[kind] = {"mean": raw.mean().item(), "p10": low, "p50": middle, "p90": high}
            layers.append(entry)
        return {"preset": self.settings.preset, "mask_mode": self.settings.mask_mode,
                "samples": importance.samples, "layers": layers}


def _runs(methods: list[NamedMethod], seed: int) -> list[tuple[Run, NamedMethod]]:
    return list(zip(all_runs(methods, [TASK], [seed]), methods, strict=True))


def _summary(scores: Mapping[str, Any]) -> dict[str, float]:
    return {key: scores[key] for name in SUMMARY for key in (name, f"{name}_se")}
