"""The whole of CoFiTune on one base: search, train the best region with and without the mask, contrast, report.

Everything is kept in one folder, and a second call with the same settings goes on where the first one stopped:

    journal.jsonl            the search (see search.run)   importance.safetensors   scores of the units
    methods/NAME.json        the scores of each method     delta/, delta-coarse/    what was trained
    merged/                  base and delta in one model   report.json              all of it, for the report
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..anchor import NO_ANCHOR, Anchor, AnchorSettings
from ..errors import CofituneError
from ..files import read_json, writable_folder, write_json
from ..importance import Importance
from ..models import load_model
from ..models.fingerprint import fingerprint
from ..regions import Region, load_delta, merge, save_delta
from ..scoring.results import SUMMARY
from ..search import Journal, Observer, Search, SearchResult, Silent, search_rate
from ..training import MemorySettings, TrainResult, planned_epochs
from ..trials import Workbench
from ..trials.head import report_head
from ..trials.workbench import content_digest
from .clock import Clock
from .rows import BASE, Method, method_row


@dataclass(frozen=True)
class PipelineSettings:
    """What decides a run's results; a folder holds the results of one such set of settings.

    region: what to train where there is no search. training: arguments of the final runs; full_sft_training goes over
    them in full SFT. preset: the mask's normaliser, or "none". importance: arguments of `Workbench.importance`;
    importance_file: measured before. preset, loss and anchor are what CoFiTune fine has beyond coarse; coarse and full
    SFT are plain.
    """

    region: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    full_sft_training: Mapping[str, Any] = field(default_factory=dict)
    importance: Mapping[str, Any] = field(default_factory=dict)
    importance_file: str | None = None
    preset: str = "none"
    mask_mode: str = "update"
    storage: str = "auto"
    memory: MemorySettings = field(default_factory=MemorySettings)
    loss: str = "ce"
    anchor: AnchorSettings = NO_ANCHOR

    @property
    def refined(self) -> bool:
        """Whether there is a CoFiTune fine."""
        return self.preset != "none" or self.loss != "ce" or self.anchor.weight > 0


class Pipeline:
    """One run in one folder; `run()` does everything, the other methods are its steps. tree_search: on the same bench
    and in the same folder, unless the settings have a region."""

    def __init__(
        self, bench: Workbench, settings: PipelineSettings, output: str | Path,
        observer: Observer | None = None, tree_search: Search | None = None,
    ):
        if tree_search is None and settings.region is None:
            raise CofituneError("Nothing to train: give a region, or a search space.")
        self.bench, self.settings, self.tree_search = bench, settings, tree_search
        self.output = writable_folder(output)
        self.observer = observer or Silent()
        self.clock = Clock()

    # The whole ---------------------------------------------------------------------------------------------------

    def run(self, title: str = "CoFiTune run") -> dict[str, Any]:
        """All steps; returns the report as written to report.json."""
        start = time.perf_counter()
        with Journal(self.output, self._identity()) as journal:
            self._plan_time()
            search = self._search(journal)
            # From here on the test part is read; the search is over and has not seen it.
            base = self._base_row()
            importance = self._importance()
            region = search.region if search else Region.parse(self.settings.region)
            training = self._final_training(search)
            coarse = self._method(Method("CoFiTune coarse", region, training), "delta-coarse")
            fine, checks = self._fine(region, training, importance)
            full = self._method(Method(
                "full SFT", Region.full(), {**self.settings.training, **self.settings.full_sft_training}))
            report = {
                **self._head(title),
                "methods": [base, full, coarse, *([fine] if fine else [])],
                "search": search.to_dict() if search else None,
                "importance": self._importance_part(importance),
                "checks": checks,
                "notes": self._notes(time.perf_counter() - start),
            }
            write_json(self.output / "report.json", report)
        return report

    def search(self, title: str = "CoFiTune search") -> SearchResult:
        """The search alone, in the same journal that `run` uses; at its end the chosen node meets the test part. Writes
        search.json, a report without methods."""
        with Journal(self.output, self._identity()) as journal:
            result = self._search(journal)
            if result is None:
                raise CofituneError("No search space is set; give search.space.")
            if self.bench.data.test and self.bench.data.versatility_test:
                self.observer.stage("Base and chosen node (test)")
                self.tree_search.test(result)
            write_json(self.output / "search.json",
                       {**self._head(title), "methods": [], "search": result.to_dict()})
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
        if self.tree_search is None:
            return None
        self.observer.stage("Tree search (valid)")
        self.tree_search.observer = _WithFinals(self.observer, self.tree_search, self.clock)
        result = self.tree_search.run(journal)
        spent = self.tree_search.ledger.spent()
        self.clock.learn(spent["flops"], spent["seconds"])
        return result

    def _final_training(self, search: SearchResult | None) -> dict[str, Any]:
        """The final runs' arguments, at the learning rate that the search's rule gives the chosen region."""
        training = dict(self.settings.training)
        if search is None:
            return training
        rates = [search_rate(values, self.bench.model) for values in (training, self.tree_search.setup.training)]
        return {**training, "learning_rate": search.chosen.learning_rate * rates[0] / rates[1]}

    def _fine(
        self, region: Region, training: Mapping[str, Any], importance: Importance | None
    ) -> tuple[dict[str, Any] | None, list[dict]]:
        if not self.settings.refined:
            return None, []
        masks = self.bench.masks(importance, region, self.settings.preset) if importance else None
        method = Method("CoFiTune fine", region, training, masks, self.settings.mask_mode, self.settings.loss,
                        self._anchor())
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
                    memory=self.settings.memory, loss=method.loss, anchor=method.anchor,
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

    def _anchor(self) -> Anchor | None:
        if self.settings.anchor.weight == 0:
            return None
        self.observer.stage("Texts of the base for the anchor")
        return self.bench.anchor(self.settings.anchor)

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

    def _head(self, title: str) -> dict[str, Any]:
        return {**report_head(self.bench, title), "split": {"search": "valid", "report": "test"}}

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
        """What the folder's results depend on; the journal refuses another set. Of files it is the content, wherever
        they lie."""
        settings, data = self.settings, self.bench.data
        return {
            "base": self.bench.base.fingerprint,
            "dtype": self.bench.base.dtype,
            "data": {key: value for key, value in vars(data).items()
                     if value is not None and key not in self.bench.data_digests},
            "data_sha256": self.bench.data_digests,
            "region": settings.region,
            "search": self.tree_search.identity() if self.tree_search else None,
            "training": dict(settings.training),
            "full_sft_training": dict(settings.full_sft_training),
            "importance": dict(settings.importance),
            "importance_sha256": content_digest(Path(settings.importance_file)) if settings.importance_file else None,
            "mask": [settings.preset, settings.mask_mode],
            "loss": settings.loss,
            "anchor": settings.anchor.identity(),
            "storage": settings.storage,
            "packing": settings.memory.packing,
            "gradient_release": settings.memory.gradient_release,
        }

    def _plan_time(self) -> None:
        """What the final runs will take, in operations of full SFT: a region about 0.4 of it, a scoring about 0.2."""
        epochs, full = (planned_epochs(values, len(self.bench.train_rows)) for values in (
            self.settings.training, {**self.settings.training, **self.settings.full_sft_training}))
        unit = self.tree_search.work.full_sft / full if self.tree_search else 1.0
        self.clock.waiting = {"base": 0.2 * unit, "cofitune-coarse": (0.4 * epochs + 0.2) * unit,
                              "full-sft": (full + 0.2) * unit}
        if self.settings.refined:
            self.clock.waiting["cofitune-fine"] = (0.4 * epochs + 0.4) * unit

    def _delta_settings(self, method: Method, run: TrainResult) -> dict[str, Any]:
        return {
            "training": {**method.training, "learning_rate": run.learning_rate},
            "mask": {"preset": self.settings.preset, "mode": method.mask_mode} if method.masks else None,
            "loss": method.loss,
            "anchor": asdict(method.anchor.settings) if method.anchor else None,
            "storage": self.settings.storage,
            "run": run.to_dict(),
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


class _WithFinals:
    """Passes a search's news on; to the time it has left comes that of the final runs."""

    def __init__(self, observer: Observer, search: Search, clock: Clock):
        self._observer, self._search, self._clock = observer, search, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._observer, name)

    def remaining(self, seconds: float | None) -> None:
        spent = self._search.ledger.spent()
        self._clock.learn(spent["flops"], spent["seconds"])
        self._observer.remaining((seconds or 0.0) + (self._clock.remaining or 0.0))


def _summary(row: dict[str, Any]) -> dict[str, float]:
    return {key: row[key] for key in SUMMARY}
