"""One run of a recipe: train it from the base, score it and its interpolations, and restore the base."""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Encoded
from ..errors import CofituneError
from ..importance import Importance, Preset
from ..json_text import read_json, write_json
from ..optim import Pull
from ..regions import GROUPS, Cell, Layout, Region, Trainable, save_delta
from ..scoring import BaseStates, with_drifts
from ..scoring.results import SUMMARY
from ..training import LossNotFinite, Schedule, TrainOptions, TrainResult
from ..trials import TrialData, TrialSetup, Workbench
from .interpolate import interpolate
from .lora import LoraAdapter
from .mofo import MoFO
from .recipe import PullSettings, Recipe, general_file

WORK = f"{__name__}:run_method"  # TrialSetup.work
SPLITS = ("valid", "test")


def run_method(bench: Workbench, setup: TrialSetup, job: Mapping[str, Any]) -> dict[str, Any]:
    """Do one job, which is plain data.

    Keys of `job`:
        id: name of the run.
        recipe: fields of Recipe; None scores the base.
        data: fields of TrialData.
        learning_rate, seed: those of the run. data_seed: seed of the row order, by default `seed`.
        alphas: interpolations to score; None in the list stands for the trained weights.
        general: a file of general rows, or None.
        importance: arguments of `Workbench.importance`, or importance_file: importance that was measured before.
        drift_rows: rows of `Workbench.all_base_states`.
        splits: parts to score, by default valid and test.
        delta: where to save the delta: {"folder", "name", "settings", "scores" of the base}; by default none is kept.
            The scores of the test part are saved with it.

    Returns:
        state: "done", or "failed" with the reason in `why` if the loss or the scores are not finite.
        scores: a list of {"alpha", and for each split SuiteScores as a dictionary with items}.
        training: the TrainResult as a dictionary, or None.
        cost: seconds = training_seconds + scoring_seconds (of all scores), trained_parameters, peak_memory_bytes, and
            the rest as in `artefacts.comparison.Cost`.
    """
    bench, clock, splits = bench.with_data(TrialData(**job["data"])), _Clock(), job.get("splits", SPLITS)
    bases = {split: bench.all_base_states(split, job["drift_rows"]) for split in splits}
    clock.lap("scoring_seconds")
    if job["recipe"] is None:
        return _result([{"alpha": None, **_score(bench, bases)}], clock)
    recipe, seed = Recipe.from_dict(job["recipe"]), job["seed"]
    trained = what_is_trained(recipe, bench.layout, seed)
    options = _options(bench, setup, job, recipe, trained, clock)
    training = {**setup.training, **recipe.training, "learning_rate": job["learning_rate"], "seed": seed,
                "data_seed": job.get("data_seed", seed)}
    if not training.get("load_best_model_at_end"):
        training["save_strategy"] = "no"  # the folder is removed in any case
    rows = _rows(bench, recipe, job)
    folder, run = setup.node_folder(job["id"]), None
    swept = [alpha for alpha in job["alphas"] if alpha is not None]
    scores: list[dict[str, Any]] = []

    def score(alpha: float | None) -> None:
        try:
            scores.append({"alpha": alpha, **_score(bench, bases, trained.cached_below, setup.memory)})
        except CofituneError as error:  # the base was scored on the same items, so the trained weights are at fault
            raise _Diverged(str(error)) from None

    clock.lap("preparation_seconds")
    try:
        with bench.trial(trained.changes) as base:
            if options.pull is not None:
                options = replace(options, pull=replace(options.pull, initial=base))  # share the copy that `trial` made
            with trained.attached(bench.model):
                try:
                    run = bench.train(trained, folder, training, options, rows=rows)
                finally:
                    clock.lap("training_seconds")
                    shutil.rmtree(folder, ignore_errors=True)
                clock.anchor_tokens = anchor_tokens(bench, options, training, run, bench.train_rows if rows is None
                                                    else rows)
                if None in job["alphas"]:
                    score(None)
                endpoint = trained.endpoint(bench.model) if swept else None
            if job.get("delta"):
                _keep_delta(bench, trained.changes, job["delta"], scores[0], run)
            for alpha in swept:
                if alpha == 1 and trained.in_place and scores and scores[0]["alpha"] is None:
                    scores.append({**scores[0], "alpha": alpha})  # alpha 1: the weights scored above
                    continue
                interpolate(bench.model, base, endpoint, alpha)
                score(alpha)
    except (LossNotFinite, _Diverged) as error:
        return _result([], clock, run, why=str(error))
    return _result(scores, clock, run)


def _keep_delta(
    bench: Workbench, region: Region, delta: Mapping[str, Any], scores: Mapping[str, Any], run: TrainResult
) -> None:
    tuned = {key: scores["test"][key] for name in SUMMARY for key in (name, f"{name}_se")}
    settings = {**delta["settings"], "run": run.to_dict()}
    save_delta(bench.model, region, delta["folder"], base=bench.base, settings=settings,
               scores={"base": delta["scores"], delta["name"]: tuned})


class _Diverged(Exception):
    """The trained model cannot be scored."""


def what_is_trained(recipe: Recipe, layout: Layout, seed: int) -> Trainable:
    """Return the region or the adapters that a recipe trains.

    Raises:
        CofituneError: the model lacks that part.
    """
    if recipe.lora is not None:
        trained: Trainable = LoraAdapter(recipe.lora, seed)
    elif recipe.random_half:
        trained = random_half(layout, seed)
    elif recipe.frozen_bottom is not None:
        first = round(recipe.frozen_bottom * layout.num_layers)
        trained = Region.parse(f"all@{first}-{layout.num_layers - 1}")
    else:
        trained = Region.parse(recipe.region)
    trained.cells(layout)
    return trained


def random_half(layout: Layout, seed: int) -> Region:
    """Draw a random half of each layer's matrices (after Hui et al., HFT, arXiv 2404.18466, section 3).

    These are half of the roles of the token mixer, such as two of q, k, v and o, and half of those of the FFN. Of an
    odd number of roles, half of the layers have one more. Unlike HFT, embeddings and norms stay frozen, and so does a
    weight that serves several layers.
    """
    draw = random.Random(f"{seed} random half")
    more = set(draw.sample(range(layout.num_layers), layout.num_layers // 2))
    return Region.from_cells(
        (layer, role) for layer in range(layout.num_layers) for group in GROUPS.values()
        for role in _half(draw, [role for role in group if _is_alone(layout.at(layer, role))], layer in more)
    )


def _half(draw: random.Random, roles: list[str], more: bool) -> list[str]:
    return draw.sample(roles, (len(roles) + more) // 2)


def _is_alone(cells: Sequence[Cell]) -> bool:
    """True for the cells of a role of a layer, if there are any and no other layer uses their weights."""
    return bool(cells) and not any(cell.shared for cell in cells)


def mixed_rows(task: Sequence[Encoded], general: Sequence[Encoded], ratio: float, seed: int) -> list[Encoded]:
    """Return the task's rows followed by `ratio` general rows for each of them.

    General rows are drawn with the seed; each is drawn once before any is repeated. The batches shuffle the two
    together.
    """
    draw, wanted, drawn = random.Random(f"{seed} general rows"), round(ratio * len(task)), []
    while len(drawn) < wanted:
        drawn += draw.sample(general, min(len(general), wanted - len(drawn)))
    return [*task, *drawn]


def general_bench(bench: Workbench, general: str | None) -> Workbench:
    """Return the bench with the general rows as training rows."""
    return bench.with_data(replace(bench.data, train=general_file(general), limit=None))


def _rows(bench: Workbench, recipe: Recipe, job: Mapping[str, Any]) -> list[Encoded] | None:
    """Return the training rows of a recipe that mixes in general rows, or asks the base about its rows.

    None stands for the task's rows as they are.
    """
    rows = None
    if recipe.mix:
        rows = mixed_rows(bench.train_rows, general_bench(bench, job["general"]).train_rows, recipe.mix, job["seed"])
    if recipe.reference is None and recipe.token_filter is None:
        return rows
    return bench.task_rows(rows or bench.train_rows, recipe.reference, recipe.token_filter)


def _options(
    bench: Workbench, setup: TrialSetup, job: Mapping[str, Any], recipe: Recipe, trained: Trainable, clock: _Clock
) -> TrainOptions:
    """Build the options of a recipe's training; anchor and importance are measured on the base now."""
    masks = pull = None
    if recipe.mask is not None:
        importance = _importance(bench, setup, job, trained, recipe.mask.importance, clock)
        masks = bench.masks(importance, trained, recipe.mask.preset)
    if recipe.pull is not None:
        pull = make_pull(recipe.pull, bench, trained, lambda: _importance(bench, setup, job, trained, "task", clock))
    anchor = bench.anchor(recipe.anchor_settings(job["general"])) if recipe.anchor is not None else None
    if anchor is not None:
        clock.made("anchor", anchor.seconds)
        clock.written_tokens = anchor.tokens
    return TrainOptions(
        loss=recipe.loss, anchor=anchor, reference=recipe.reference,
        masks=masks, mask_mode=recipe.mask.mode if recipe.mask is not None else "update", pull=pull,
        # Adapters are float32, so the run's storage does not apply to them.
        storage="auto" if recipe.lora is not None else setup.storage, memory=setup.memory,
        optimizer_kind=partial(MoFO, share=recipe.mofo) if recipe.mofo else None,
    )


def make_pull(
    settings: PullSettings, bench: Workbench, trained: Trainable, importance: Callable[[], Importance]
) -> Pull:
    """Build the `optim.Pull` of a recipe.

    Its units are the importance of the units, or the square of it, divided by the layer's mean. So the mean pull of a
    layer is the same with and without them. Parameters without units (norms, embeddings) have factor 1.
    """
    if settings.units == "none":
        return Pull(settings.kind, settings.strength)
    power = 2 if settings.units == "importance_squared" else 1

    def relative(scores: Tensor) -> Tensor:
        powered = scores.double() ** power
        return (powered / powered.mean(-1, keepdim=True).clamp_min(1e-300)).float()

    keep = bench.masks(importance(), trained, Preset(settings.units, relative, down="neuron"))
    units = {name: torch.ones((), device=parameter.device) for name, parameter in trained.parameters(bench.model)}
    return Pull(settings.kind, settings.strength, {**units, **{name: 1 - factors for name, factors in keep.items()}})


def _importance(
    bench: Workbench, setup: TrialSetup, job: Mapping[str, Any], trained: Trainable, source: str, clock: _Clock
) -> Importance:
    """Return the importance of the trained units, measured once per folder, task and source.

    The seconds that it took are kept beside it.
    """
    if job.get("importance_file"):
        clock.made(job["importance_file"], None)
        return Importance.load(job["importance_file"])
    if source == "contrast":
        needed = {**job, "importance": {**job["importance"], "proxy": "task_nll"}}
        kept, used = (_importance(bench, setup, one, trained, "task", clock) for one in (job, needed))
        return kept.against(used)
    measured_on = bench if source == "task" else general_bench(bench, job["general"])
    region = None if trained.is_full else trained
    content = [job["data"], job["general"] if source == "general" else None, str(trained), job["importance"]]
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(setup.output) / "importance" / f"{name}.safetensors"
    about = path.with_suffix(".json")
    if not path.is_file():
        start = time.perf_counter()
        importance = measured_on.importance(region, **job["importance"])
        write_json(about, {"seconds": time.perf_counter() - start})
        importance.save(path)
    made = read_json(about, "cost of an importance", {"seconds": float}) if about.is_file() else {}
    clock.made(name, made.get("seconds"))
    return Importance.load(path)


def _score(
    bench: Workbench, bases: Mapping[str, Mapping[str, BaseStates]], region: Region | None = None, memory: Any = None
) -> dict[str, Any]:
    return {split: with_drifts(bench.score(split, region=region, memory=memory), bench.model, those).to_dict(items=True)
            for split, those in bases.items()}


def _result(
    scores: list[dict[str, Any]], clock: _Clock, run: TrainResult | None = None, why: str | None = None
) -> dict[str, Any]:
    clock.lap("scoring_seconds")
    cost = {"seconds": clock.laps["training_seconds"] + clock.laps["scoring_seconds"], **clock.laps,
            "whole_preparation_seconds": clock.whole_preparation, "tokens": run.tokens if run else 0,
            "anchor_tokens": clock.anchor_tokens, "written_tokens": clock.written_tokens,
            "trained_parameters": run.trained_parameters if run else 0,
            "peak_memory_bytes": run.peak_memory_bytes if run else 0}
    return {"state": "failed" if why else "done", "why": why, "scores": scores, "cost": cost,
            "training": run.to_dict() if run else None}


def anchor_tokens(
    bench: Workbench, options: TrainOptions, training: Mapping[str, Any], run: TrainResult, rows: Sequence[Encoded]
) -> int:
    """Number of tokens of the anchor's texts that a training has processed, if each text came equally often."""
    if options.anchor is None or not options.anchor.rows:
        return 0
    texts, batches = options.anchor.rows, Schedule.of(training, bench.model, len(rows)).batches
    mean = sum(len(text.input_ids) for text in texts) / len(texts)
    return round(run.epochs * batches * min(options.anchor.settings.rows, len(texts)) * mean)


class _Clock:
    """Stopwatch with seconds by name; each lap begins where the last one ended.

    Attributes:
        anchor_tokens, written_tokens: see `artefacts.comparison.Cost`.
    """

    def __init__(self) -> None:
        self.anchor_tokens = self.written_tokens = 0
        self._made: dict[str, float | None] = {}
        self.laps = dict.fromkeys(("preparation_seconds", "training_seconds", "scoring_seconds"), 0.0)
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] += now - self._last
        self._last = now

    def made(self, what: str, seconds: float | None) -> None:
        """Note what a part of the preparation took when it was made; None if that is not known."""
        self._made[what] = seconds

    @property
    def whole_preparation(self) -> float | None:
        return None if None in self._made.values() else math.fsum(self._made.values())
