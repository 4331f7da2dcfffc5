"""What the tests of the comparison share: a bench on the tiny run, jobs, and an executor that trains nothing."""

from __future__ import annotations

from dataclasses import asdict

from cofitune_fast.models import load_model
from cofitune_fast.trials import TrialData, TrialSetup, Workbench

TRAINING = {"per_device_train_batch_size": 8, "max_steps": 2}


def make_bench(tiny_run):
    return Workbench(load_model(tiny_run["model"]), TrialData(
        **{part: tiny_run[f"data.{part}"] for part in ("train", "valid", "test")},
        **{f"versatility_{part}": tiny_run[f"versatility.{part}"] for part in ("valid", "test")}))


def make_setup(tiny_run, bench, **options):
    return TrialSetup({"path": tiny_run["model"]}, bench.data, options.pop("training", TRAINING), tiny_run["output"],
                      **options)


def make_job(bench, recipe, **values):
    return {"id": "one", "recipe": recipe.to_dict() if recipe else None, "data": asdict(bench.data),
            "learning_rate": 1e-2, "seed": 1, "alphas": [None], "general": None, "importance": {"samples": 8},
            "drift_rows": 4, **values}


class Recorder:
    """Answers jobs by rule, keeps them in order, and can be told to break off."""

    slots = 1

    def __init__(self, bench, answer):
        self.bench, self.answer, self.jobs, self.stop_after = bench, answer, [], None

    def run(self, jobs):
        for job in jobs:
            if self.stop_after is not None and len(self.jobs) >= self.stop_after:
                raise KeyboardInterrupt
            self.jobs.append(job)
            yield job, self.answer(job)

    def close(self): ...
