"""The whole of CoFiTune on one base: search, train the best region with and without the mask, contrast, report.

Everything is kept in one folder, and a second call with the same settings goes on where the first one stopped:

    journal.jsonl            the search's nodes            importance.safetensors   scores of the units
    methods/NAME.json        the scores of each method     delta/, delta-coarse/    what was trained
    merged/                  base and delta in one model   report.json              all of it, for the report
"""

from __future__ import annotations

import datetime
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..environment import environment
from ..errors import CofituneError
from ..files import read_json, writable_folder, write_json
from ..importance import Importance
from ..models import load_model
from ..models.fingerprint import fingerprint
from ..regions import Region, load_delta, merge, save_delta
from ..scoring.results import SUMMARY
from ..search import Candidate, Journal, Level, SearchResult, children, tree_search
from ..training import MemorySettings, TrainResult, training_arguments
from ..trials import Workbench
from .methods import BASE, Method, method_row
from .progress import Clock, PipelineObserver, Quiet


@dataclass(frozen=True)
class PipelineSettings:
    """What decides a run's results; a folder holds the results of one such set of settings.

    levels: the search space (empty: train `region` without a search). training: arguments of the final runs.
    search_training, full_sft_training: go over `training` in the search's nodes and in full SFT. preset: the mask's
    normaliser, or "none". importance: arguments of `Workbench.importance`; importance_file: measured before.
    """

    levels: tuple[Level, ...] = ()
    region: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    search_training: Mapping[str, Any] = field(default_factory=dict)
    full_sft_training: Mapping[str, Any] = field(default_factory=dict)
    importance: Mapping[str, Any] = field(default_factory=dict)
    importance_file: str | None = None
    preset: str = "rank"
    mask_mode: str = "update"
    storage: str = "auto"
    memory: MemorySettings = field(default_factory=MemorySettings)
    space: str = "paper"


class Pipeline:
    """One run in one folder; `run()` does everything, the other methods are its steps."""

    def __init__(
        self, bench: Workbench, settings: PipelineSettings, output: str | Path,
        observer: PipelineObserver | None = None,
    ):
        if not settings.levels and settings.region is None:
            raise CofituneError("Nothing to train: give a region, or a search space.")
        self.bench, self.settings = bench, settings
        self.output = writable_folder(output)
        self.observer = observer or Quiet()
        self.clock = Clock()

    # The whole ---------------------------------------------------------------------------------------------------

    def run(self, title: str = "CoFiTune run") -> dict[str, Any]:
        """All steps; returns the report as written to report.json."""
        start = time.perf_counter()
        with Journal(self.output, self._identity()) as journal:
            self._plan_time()
            base = self._base_row()
            importance = self._importance()
            search = self._search(journal)
            region = search.region if search else Region.parse(self.settings.region)
            coarse = self._method(Method("CoFiTune coarse", region, self.settings.training), "delta-coarse")
            fine, checks = self._fine(region, importance)
            full = self._method(Method(
                "full SFT", Region.full(), {**self.settings.training, **self.settings.full_sft_training}))
            report = {
                "title": title,
                "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                "command": shlex.join(["cofitune", *sys.argv[1:]]) if sys.argv[1:] else "",
                "base": {"model": _shown(self.bench.source), "fingerprint": self.bench.base.fingerprint,
                         "dtype": self.bench.base.dtype, "parameters": self.bench.total_parameters},
                "methods": [base, full, coarse, *([fine] if fine else [])],
                "search": self.search_part(search) if search else None,
                "importance": self._importance_part(importance),
                "checks": checks,
                "split": {"search": "valid", "report": "test"},
                "environment": environment(),
                "notes": self._notes(time.perf_counter() - start),
            }
            write_json(self.output / "report.json", report)
        return report

    def search(self) -> SearchResult:
        """The search alone, in the same journal that `run` uses."""
        with Journal(self.output, self._identity()) as journal:
            self._plan_time(finals=False)
            result = self._search(journal)
            if result is None:
                raise CofituneError("No search space is set; give search.space.")
            return result

    # Steps ---------------------------------------------------------------------------------------------------------

    def _base_row(self) -> dict[str, Any]:
        def measure() -> dict[str, Any]:
            self.observer.stage("Scores of the base (test)")
            return method_row(self.bench, BASE, self.bench.score("test"))

        return self._kept("base", measure)

    def _importance(self) -> Importance | None:
        if self.settings.preset == "none":
            return None
        path = Path(self.settings.importance_file or self.output / "importance.safetensors")
        if self.settings.importance_file or path.is_file():
            importance = Importance.load(path)
            importance.check(self.bench.base.fingerprint, self.bench.base.model)
            return importance
        self.observer.stage("Importance of the units")
        importance = self.bench.importance(**self.settings.importance)
        importance.save(path)
        return importance

    def _search(self, journal: Journal) -> SearchResult | None:
        if not self.settings.levels:
            return None
        self.observer.stage("Tree search (valid)")
        if "base" not in journal.nodes:
            scores = self.bench.score("valid").to_dict()
            scores.pop("tasks")
            journal.append({"id": "base", "scores": scores})
        base = journal.nodes["base"]["scores"]
        self.observer.note(f"base on valid: Spec {base['spec']:.3f}  Vers {base['vers']:.3f}  Uni {base['uni']:.3f}")
        timed = _Timed(self)
        result = tree_search(self.settings.levels, self.bench.layout.num_layers, self._trial, journal, timed)
        timed.done()
        return result

    def _trial(self, candidate: Candidate) -> tuple[dict[str, float], dict[str, Any]]:
        start = time.perf_counter()
        with self.bench.trial(candidate.region):
            run = self.bench.train(
                candidate.region, self.output / "nodes",
                {**self.settings.training, **self.settings.search_training, "save_strategy": "no"},
                storage=self.settings.storage, memory=self.settings.memory,
            )
            scores = self.bench.score("valid").to_dict()
        scores.pop("tasks")
        cost = run.to_dict()
        return scores, {**cost, "training_seconds": cost["seconds"], "seconds": time.perf_counter() - start}

    def _fine(self, region: Region, importance: Importance | None) -> tuple[dict[str, Any] | None, list[dict]]:
        if importance is None:
            return None, []
        masks = self.bench.masks(importance, region, self.settings.preset)
        method = Method("CoFiTune fine", region, self.settings.training, masks, self.settings.mask_mode)
        row = self._method(method, "delta")
        checks_file = self.output / "methods" / "checks.json"
        if not checks_file.is_file():
            self.observer.stage("Delta merged, reloaded and scored again")
            write_json(checks_file, self._checks(row))
        return row, read_json(checks_file, "list of checks")

    def _method(self, method: Method, delta: str | None = None) -> dict[str, Any]:
        """Train a method from the base and score it on the test part; its delta goes to the folder `delta`, if any."""
        def measure() -> dict[str, Any]:
            self.observer.stage(f"{method.name}: {method.region.describe(self.bench.model)}")
            with self.bench.trial(method.region):
                run = self.bench.train(
                    method.region, self.output / "training" / method.slug,
                    {**method.training, "save_strategy": "no"},
                    masks=method.masks, mask_mode=method.mask_mode, storage=self.settings.storage,
                    memory=self.settings.memory,
                )
                scores = self.bench.score("test")
                row = method_row(self.bench, method, scores, run)
                if delta:
                    save_delta(
                        self.bench.model, method.region, self.output / delta, base=self.bench.base,
                        settings=self._delta_settings(method, run),
                        scores={"base": _summary(self._base_row()), method.name: _summary(row)},
                    )
            return row

        return self._kept(method.slug, measure)

    def _checks(self, fine: dict[str, Any]) -> list[dict[str, Any]]:
        """The delta on disk, put on the base and merged into a model folder, is the model that was scored."""
        bench, run = self.bench, fine["run"]
        with bench.trial(Region.parse(fine["region"])):
            load_delta(bench.model, self.output / "delta", base_fingerprint=bench.base.fingerprint)
            tuned = fingerprint(bench.model)
        merged_folder = self.output / "merged"
        if not merged_folder.is_dir():
            merge(bench.model, self.output / "delta", merged_folder, tokenizer=bench.tokenizer)
        merged = Workbench(load_model(merged_folder, device=bench.model.device), bench.data)
        moved = {name for name, digest in merged.digests.items() if digest != bench.digests.get(name)}
        outside = moved - {name for name, _ in Region.parse(fine["region"]).parameters(bench.model)}
        again = merged.score("test").to_dict()
        largest = max(abs(again[key] - fine[key]) for key in ("spec", "knowledge", "reasoning", "instruction"))
        return [
            {"name": "frozen tensors unchanged", "passed": not outside,
             "detail": f"{run['frozen_tensors']} tensors, {run['frozen_bytes'] / 1e6:.1f} MB, same SHA-256 in the base "
                       f"and in the merged model" if not outside else f"changed: {', '.join(sorted(outside))}"},
            {"name": "merged model equals base + delta", "passed": merged.base.fingerprint == tuned,
             "detail": f"fingerprint {tuned[:12]} of {merged_folder.name}/, reloaded from disk"},
            {"name": "merged model scores the same", "passed": largest == 0.0,
             "detail": f"largest difference of a score on test: {largest:.1g}"},
        ]

    # Bookkeeping -----------------------------------------------------------------------------------------------------

    def _kept(self, slug: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = self.output / "methods" / f"{slug}.json"
        if path.is_file():
            self.clock.drop(slug)
            return read_json(path, "method's result")
        self.clock.start(slug)
        row = measure()
        write_json(path, row)
        self.clock.finish(slug)
        self.observer.remaining(self.clock.remaining)
        return row

    def _identity(self) -> dict[str, Any]:
        """What the folder's results depend on; the journal refuses another set."""
        settings, data = self.settings, self.bench.data
        return {
            "base": self.bench.base.fingerprint,
            "dtype": self.bench.base.dtype,
            "data": {key: value for key, value in vars(data).items() if value is not None},
            "data_sha256": self.bench.data_digests,
            "region": settings.region,
            "space": [[level.name, level.layers, level.roles] for level in settings.levels],
            "training": dict(settings.training),
            "search_training": dict(settings.search_training),
            "full_sft_training": dict(settings.full_sft_training),
            "importance": {**settings.importance, **({"file": settings.importance_file} if settings.importance_file
                                                     else {})},
            "mask": [settings.preset, settings.mask_mode],
            "storage": settings.storage,
            "packing": settings.memory.packing,
            "gradient_release": settings.memory.gradient_release,
        }

    def _plan_time(self, finals: bool = True) -> None:
        """Weights in passes over the training rows: full SFT costs about 2.5 times a region, scoring half a pass."""
        scoring, settings = 0.5, self.settings
        self.clock.waiting = {}
        if finals:
            epochs = self._epochs(settings.training)
            full = self._epochs({**settings.training, **settings.full_sft_training})
            self.clock.waiting = {"cofitune-coarse": epochs + 2 * scoring, "full-sft": 2.5 * full + 2 * scoring}
            if settings.preset != "none":
                self.clock.waiting["cofitune-fine"] = epochs + 4 * scoring
        node = self._epochs({**settings.training, **settings.search_training}) + scoring
        for number in range(_most_nodes(settings.levels, self.bench.layout.num_layers)):
            self.clock.waiting[f"node {number}"] = node

    def _epochs(self, training: Mapping[str, Any]) -> float:
        arguments = training_arguments(training, self.output)
        if arguments.max_steps <= 0:
            return float(arguments.num_train_epochs)
        batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
        return arguments.max_steps * batch / len(self.bench.train_rows)

    def _delta_settings(self, method: Method, run: TrainResult) -> dict[str, Any]:
        return {
            "training": {**method.training, "learning_rate": run.learning_rate},
            "mask": {"preset": self.settings.preset, "mode": method.mask_mode} if method.masks else None,
            "storage": self.settings.storage,
            "run": run.to_dict(),
        }

    def search_part(self, search: SearchResult) -> dict[str, Any]:
        """The search as report.json has it."""
        return {
            "space": self.settings.space, "split": "valid", "chosen": search.chosen.id, "seconds": search.seconds,
            "nodes": [node.to_report() for node in search.nodes],
        }

    def _importance_part(self, importance: Importance | None) -> dict[str, Any] | None:
        if importance is None:
            return None
        normalized = importance.normalized(self.settings.preset)
        layers = []
        for row, layer in enumerate(importance.layers):
            entry: dict[str, Any] = {"layer": layer}
            for kind, scores in importance.scores.items():  # one measured elsewhere may lack a kind
                if kind == "attn.head":
                    entry[kind] = normalized[kind][row].tolist()
                    continue
                raw = scores[row]
                low, middle, high = raw.quantile(raw.new_tensor([0.1, 0.5, 0.9])).tolist()
                entry[kind] = {"mean": raw.mean().item(), "p10": low, "p50": middle, "p90": high}
            layers.append(entry)
        return {"preset": self.settings.preset, "mask_mode": self.settings.mask_mode,
                "samples": importance.samples, "layers": layers}

    def _notes(self, seconds: float) -> list[str]:
        return [
            "Every method ran at the one learning rate given to it; the order of the methods may depend on the rates.",
            "One seed. The search chose on the valid part only; every figure of the table is on the test part.",
            f"This call took {seconds:.0f} s; results kept from an earlier call of the same run are not in it.",
        ]


class _Timed:
    """Passes a search's news on and keeps the clock."""

    def __init__(self, pipeline: Pipeline):
        self.clock, self.observer, self.count = pipeline.clock, pipeline.observer, 0

    def done(self) -> None:
        """Nodes that were expected and did not come (a best region with fewer parts) wait no longer."""
        for job in [job for job in self.clock.waiting if job.startswith("node ")]:
            self.clock.drop(job)
        self.observer.remaining(self.clock.remaining)

    def level(self, level: Level, candidates: list[Candidate]) -> None:
        self.observer.level(level, candidates)

    def start(self, candidate: Candidate) -> None:
        self.clock.start(f"node {self.count}")
        self.observer.start(candidate)

    def finish(self, node: Any, best: Any, from_journal: bool) -> None:
        job = f"node {self.count}"
        self.clock.drop(job) if from_journal else self.clock.finish(job)
        self.count += 1
        self.observer.finish(node, best, from_journal)
        self.observer.remaining(self.clock.remaining)


def _most_nodes(levels: tuple[Level, ...], num_layers: int) -> int:
    """How many nodes a search has, taking the first child as the best of each level."""
    count, best = 0, None
    for number, level in enumerate(levels):
        found = children(level, number, best, num_layers)
        count += len(found)
        best = found[-1] if found else best
    return count


def _shown(source: str) -> str:
    """A hub id as it is; of a folder or file its name, as a report goes to people on other machines."""
    return Path(source).name if Path(source).exists() else source


def _summary(row: dict[str, Any]) -> dict[str, float]:
    return {key: row[key] for key in SUMMARY}
