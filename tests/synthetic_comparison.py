"""A comparison as it might be: 6 methods, 4 rates, 3 seeds, 2 tasks; a seed missing, a run failed, a single seed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from cofitune_fast.compare.curves.curves import curves_and_verdicts
from cofitune_fast.methods.entries import base_name, scores_row
from cofitune_fast.scoring import DriftItem, ItemScore, SuiteScores
from cofitune_fast.scoring.results import make_score, score_of

# What a method gains (nats per token of the task) at most, what it then forgets of the instructions, its time and size.
METHODS = {
    "full SFT": (1.50, 0.22, 440.0, 134_515_008),
    "LoRA": (1.50, 0.17, 400.0, 4_884_480),
    "L2 to the base": (1.49, 0.19, 450.0, 134_515_008),
    "bottom frozen": (1.42, 0.16, 330.0, 67_257_504),
    "CoFiTune coarse": (1.50, 0.10, 290.0, 12_386_304),
    "CoFiTune + anchor": (1.49, 0.022, 400.0, 12_386_304),
}
RATES = (1e-5, 3e-5, 1e-4, 4e-4)
SEEDS = (1, 2, 3)
TASKS = {"e2e": 2.85, "gsm8k": 1.90}


def suite(task, gain, loss, part, noise=0.0, run_seed=0, items=80):
    """Scores on fixed items: `gain` and `loss` in nats per token, `noise` shifts both."""
    fixed = np.random.default_rng([len(task), len(part)])
    own = np.random.default_rng(run_seed)

    def likelihood(level, change, size):
        tokens = fixed.integers(5, 40, size)
        per_token = (level + 0.5 * fixed.standard_normal(size)).clip(0.2)
        nll = tokens * (per_token + change + 0.03 * own.standard_normal(size)).clip(0.05)
        return make_score([ItemScore(float(a), int(b), False) for a, b in zip(nll, tokens, strict=True)],
                          "likelihood", "exact")

    def accuracy(share, change, size):
        latent = fixed.standard_normal(size) + 1.5 * share - change + 0.05 * own.standard_normal(size)
        return make_score([ItemScore(1.0, 1, bool(value > 0.5)) for value in latent], "accuracy", "accuracy")

    return SuiteScores.of({
        "speciality": {task: likelihood(TASKS.get(task, 2.0), noise - gain, items)},
        "knowledge": {"arc": accuracy(0.4, 0.3 * loss, 2 * items)},
        "reasoning": {"piqa": accuracy(0.6, 0.3 * loss, 2 * items)},
        "instruction": {"chat": likelihood(1.845, loss + noise / 2, items)},
    })


def drifted(scores, kl, items=40):
    """The scores with a drift of `kl` nats per token, thrice that on the task, whose items differ."""
    def score(mean):
        return score_of([DriftItem(10 * mean * share, 10) for share in np.linspace(0.5, 1.5, items)], "kl", ("kl",))

    return replace(scores, drift=score(kl), task_drift=score(3 * kl))


def plain_scores(scores):
    return scores_row(scores.to_dict())


def comparison(methods=METHODS, rates=RATES, seeds=SEEDS, tasks=tuple(TASKS), gaps=True, drift=True, items=80,
               judged=True):
    """(content of comparison.json, per-item values). gaps: a seed missing, a run failed, a method of one seed."""
    values, runs, base_scores, number = {}, [], {}, 0
    for task in tasks:
        both = {part: suite(task, 0, 0, part, items=items) for part in ("valid", "test")}
        if drift:
            both = {part: drifted(scores, 0.0) for part, scores in both.items()}
        values[base_name(task)] = both
        base_scores[task] = {part: plain_scores(scores) for part, scores in both.items()}
        for place, (name, (most, forgotten, seconds, size)) in enumerate(methods.items()):
            for rate in rates:
                strength = math.log10(rate / 2e-6) / math.log10(2e2)
                for seed in seeds:
                    number += 1
                    run = {"id": f"{name}-{task}-{rate:g}-{seed}".lower().replace(" ", "-"), "method": name,
                           "task": task, "learning_rate": rate, "seed": seed, "alpha": None, "state": "done",
                           "why": None, "valid": None, "test": None, "cost": None}
                    runs.append(run)
                    if gaps and name == "bottom frozen" and seed != seeds[0]:
                        run |= {"state": "missing", "why": "not run yet"}
                    if gaps and name == "LoRA" and rate == 1e-4 and seed == 3:
                        run |= {"state": "missing", "why": "not run yet"}
                    if gaps and name == "full SFT" and rate == 4e-4 and seed == 2 and task == "e2e":
                        run |= {"state": "failed", "why": "the loss became NaN at step 40"}
                    if run["state"] != "done":
                        continue
                    noise = 0.004 * float(np.random.default_rng([number, place]).standard_normal())
                    loss = forgotten * strength**2.5
                    both = {part: suite(task, most * strength**0.7, loss, part, noise, number, items)
                            for part in ("valid", "test")}
                    if drift:
                        both = {part: drifted(scores, loss * 0.6 + abs(noise)) for part, scores in both.items()}
                    values[run["id"]] = both
                    run |= {part: plain_scores(scores) for part, scores in both.items()}
                    run["cost"] = {"seconds": seconds + 60, "training_seconds": seconds + seed, "scoring_seconds": 60,
                                   "preparation_seconds": 100.0 if number == 1 else 0.0,
                                   "whole_preparation_seconds": 100.0 if "anchor" in name else 0.0,
                                   "anchor_tokens": 30_000 if "anchor" in name else 0,
                                   "written_tokens": 9_000 if "anchor" in name else 0, "tokens": 120_000,
                                   "trained_parameters": size,
                                   "peak_memory_bytes": 16 * size + 2**30}
    content = {
        "title": "SmolLM2-135M on E2E and GSM8K", "created": "2026-11-20T10:00:00+00:00",
        "command": "cofitune compare --config methods.yaml",
        "base": {"model": "SmolLM2-135M-Instruct", "fingerprint": "sha256:ab", "dtype": "bfloat16",
                 "parameters": 134_515_008},
        "environment": {"python": "3.11"}, "split": {"choose": "valid", "report": "test"},
        "tasks": list(tasks), "seeds": list(seeds),
        "methods": [{"name": name, "sentence": f"{name}, as published.", "recipe": {}} for name in methods],
        "base_scores": base_scores, "runs": runs,
    }  # fmt: skip
    return (content | curves_and_verdicts(content, values) if judged else content), values
