"""A made-up report for the tests of this room: no number in it was ever measured."""

from __future__ import annotations

import math

PARAMETERS = 100_000_000


def method(name: str, spec: float, vers: float, se: float = 0.004, **more) -> dict:
    """A method row with equal groups around `vers`; `se` is the error of Spec and Vers alike."""
    row = {
        "name": name, "region": None, "trained_parameters": PARAMETERS, "seconds": 548.0,
        "peak_memory_bytes": 3 * 2**30, "learning_rate": 4e-5, "epochs": 2,
        "spec": spec, "spec_se": se, "vers": vers, "vers_se": se,
        "knowledge": vers + 0.05, "knowledge_se": 0.011, "reasoning": vers - 0.05, "reasoning_se": 0.012,
        "instruction": vers, "instruction_se": 0.013, "uni": spec + vers, "uni_se": math.hypot(se, se),
        "details": {"facts": {"value": vers, "se": se, "n": 1200, "metric": "accuracy", "exact": vers / 2}},
    }  # fmt: skip
    return row | more


def node(key: str, parent: str | None, level: int, spec: float, vers: float, **more) -> dict:
    return {
        "id": key, "parent": parent, "level": level, "level_name": f"level {level}", "label": f"node {key}",
        "region": f"ffn@{level}-9", "trained_parameters": 7_000_000, "seconds": 61.0, "best_of_level": False,
        **{score: value for score, value in method("x", spec, vers).items() if score.split("_")[0] in
           ("spec", "vers", "uni", "knowledge", "reasoning", "instruction")},
    } | more  # fmt: skip


def synthetic_report(**more) -> dict:
    """Four methods, a search of six nodes on three levels, importance of six layers, two checks."""
    heads = [0.1, 0.9, 0.4, 0.6]
    spread = {"mean": 0.5, "p10": 0.2, "p50": 0.45, "p90": 0.8}
    region = {"region": "ffn.up+ffn.down@25%-50%", "trained_parameters": 9_200_000, "seconds": 305.4}
    return {
        "title": "Synthetic report", "created": "2001-02-03T04:05:06+00:00",
        "command": "cofitune compare --config x.yaml",
        "base": {"model": "made/up-100M", "fingerprint": "ab" * 32, "dtype": "bfloat16", "parameters": PARAMETERS},
        "methods": [
            method("base", 0.111, 0.612, trained_parameters=0, seconds=0.0, learning_rate=None, epochs=None),
            method("full SFT", 0.431, 0.523),
            method("LoRA", 0.402, 0.541, trained_parameters=1_230_000),
            method("CoFiTune fine", 0.421, 0.598, **region, peak_memory_bytes=1_600_000_000),
        ],
        "search": {
            "space": "paper", "split": "valid", "chosen": "f", "seconds": 1412.0,
            "nodes": [
                node("a", None, 1, 0.30, 0.55), node("b", None, 1, 0.35, 0.57, best_of_level=True),
                node("c", "b", 2, 0.36, 0.55), node("d", "b", 2, 0.37, 0.58, best_of_level=True),
                node("e", "d", 3, 0.37, 0.57), node("f", "d", 3, 0.38, 0.59, best_of_level=True),
            ],
        },
        "importance": {
            "preset": "rank", "mask_mode": "update", "samples": 64,
            "layers": [{"layer": i, "ffn.neuron": spread, "ffn.output": spread, "attn.head": heads} for i in range(6)],
        },
        "checks": [
            {"name": "frozen tensors unchanged", "passed": True, "detail": "256 tensors"},
            {"name": "merged model scores the same", "passed": True, "detail": ""},
        ],
        "split": {"search": "valid", "report": "test"},
        "environment": {"cpu": "made-up", "cores": 2, "memory_bytes": 16 * 2**30, "gpu": None, "torch": "9.9"},
        "notes": ["One seed only."],
    } | more  # fmt: skip
