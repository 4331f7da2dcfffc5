"""Jobs: one rung of one node of a search. A job trains a region further, scores it, and restores the base.

A job and its result are plain data. A job killed at any moment can be run again: it resumes from the node's last
checkpoint, and its result is the same to the bit.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..json_text import read_json
from ..regions import Region, load_delta, save_delta
from ..scoring import Signal
from ..training import TrainOptions, last_complete_checkpoint, without_evaluations
from ..training.callbacks import Saves
from .setup import TrialSetup
from .workbench import Workbench

DELTA = "delta"
_NOTHING_TRAINED = {"peak_memory_bytes": 0, "cached_rows": 0, "notes": [], "steady_seconds": 0.0}


def run_job(bench: Workbench, setup: TrialSetup, job: Mapping[str, Any]) -> dict[str, Any]:
    """Train the node `job["id"]` up to `job["end"]` of its training and score the part `job["split"]`.

    A node that goes on later leaves a checkpoint. A finished node leaves its delta and is not trained again.

    Keys of `job`:
        id, region (None: the base), split, learning_rate, seed.
        measure: what is scored, some of "uni" and "signal"; by default ["uni"].
        anchor: True to write the anchor's texts now, if they are not there yet, so that no node's time includes them.
        begin, end: fractions of the node's training.
        last: the node is finished after this job.

    Returns:
        scores: for "uni" the figures of SuiteScores, for "signal" those of `signal_figures`.
        items: for each measure the per-item values, as SuiteScores or Signal write them.
        cost: seconds, training_seconds, scoring_seconds, trained_parameters, peak_memory_bytes, cached_rows and notes,
            and steady_seconds, see TrainResult. The last four are 0 or empty if an
            earlier run of the job had trained already.
    """
    start = time.perf_counter()
    if job.get("anchor"):
        bench.anchor(setup.anchor)
    trained = time.perf_counter()
    if "signal" in job.get("measure", ()):
        bench.base_states(job["split"], setup.drift_rows)  # while the model is the base
    measuring = time.perf_counter() - trained
    if job["region"] is None:
        found, cost = _measure(bench, setup, job, None), {"trained_parameters": 0, **_NOTHING_TRAINED}
    else:
        region = Region.parse(job["region"])
        with bench.trial(region):
            cost = {"trained_parameters": region.count(bench.model), **_train(bench, setup, job, region)}
            trained = time.perf_counter() - measuring
            found = _measure(bench, setup, job, region)
    end = time.perf_counter()
    return {
        **found,
        "cost": {**cost, "seconds": end - start, "training_seconds": trained - start, "scoring_seconds": end - trained},
    }


def signal_figures(signal: Signal) -> dict[str, float]:
    """Return signal and signal_se, and its parts nll and drift, all in nats per token."""
    return {"signal": signal.value, "signal_se": signal.se, "nll": signal.nll_mean,
            **({"drift": signal.drift.value} if signal.drift is not None else {})}


def _measure(
    bench: Workbench, setup: TrialSetup, job: Mapping[str, Any], region: Region | None
) -> dict[str, dict[str, Any]]:
    scores, items = {}, {}
    for measure in job.get("measure", ("uni",)):
        if measure == "signal":
            signal = bench.signal(job["split"], setup.drift_rows, region=region, memory=setup.memory)
            scores.update(signal_figures(signal))
            items["signal"] = signal.to_dict()
        else:
            items["uni"] = bench.score(job["split"], region=region, memory=setup.memory).to_dict(items=True)
            scores.update({key: value for key, value in items["uni"].items() if key != "tasks"})
    return {"scores": scores, "items": items}


def clean_node(setup: TrialSetup, node: str, *, delta: bool = False) -> None:
    """Remove the checkpoints of a node that is not trained further, and with `delta` also its delta."""
    folder = setup.node_folder(node)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    if delta and folder.is_dir():
        shutil.rmtree(folder)


def _train(bench: Workbench, setup: TrialSetup, job: Mapping[str, Any], region: Region) -> dict[str, Any]:
    folder = setup.node_folder(job["id"])
    finished, checkpoint = folder / DELTA, last_complete_checkpoint(folder)
    if (finished / "cofitune.json").is_file():
        load_delta(bench.model, finished, base_fingerprint=bench.base.fingerprint)
        return dict(_NOTHING_TRAINED)
    if checkpoint is not None:
        state = read_json(Path(checkpoint) / "trainer_state.json", "state of a training",
                          {"global_step": int, "max_steps": int})
        if state["global_step"] >= _last_step(job["end"], state["max_steps"]):
            load_delta(bench.model, checkpoint, base_fingerprint=bench.base.fingerprint)
            return dict(_NOTHING_TRAINED)
    # All nodes see the rows in the same order, so that nodes do not differ by it. Everything else that is random has
    # the node's own seed.
    shared = {"data_seed": setup.training.get("data_seed", setup.training.get("seed", 42))}
    run = bench.train(
        region, folder,
        {**without_evaluations(setup.training), **shared, "seed": job["seed"], "learning_rate": job["learning_rate"],
         "save_strategy": "no", "save_total_limit": 1, "resume_from_checkpoint": checkpoint},
        TrainOptions(loss=setup.loss, anchor=bench.anchor(setup.anchor), storage=setup.storage, memory=setup.memory),
        callbacks=[_Pause(job["end"]), Saves(60 * setup.checkpoint_minutes)],
    )
    if job["last"]:
        save_delta(bench.model, region, finished, base=bench.base, settings={"node": dict(job)})
    return {"peak_memory_bytes": run.peak_memory_bytes, "cached_rows": run.cached_rows, "notes": run.notes,
            "steady_seconds": run.steady_seconds}


def _last_step(fraction: float, steps: int) -> int:
    return math.ceil(fraction * steps)


class _Pause(TrainerCallback):
    """Stops a training with a checkpoint at a fraction of its steps."""

    def __init__(self, fraction: float):
        self.fraction = fraction

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if _last_step(self.fraction, state.max_steps) <= state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
