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


def failed_method(name: str, why: str | None, **more) -> dict:
    """A method that ended before it had scores."""
    return {"name": name, "region": "full", "state": "failed", "why": why, "seconds": None} | more


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


def _signal(spec: float) -> dict[str, float]:
    return {"signal": spec - 2.02, "signal_se": 0.01, "nll": 2 - spec, "drift": 0.02}


def racing_search(**more) -> dict:
    """A search as races write it: three levels, rungs of 0.25, 0.5 and 1, nodes dropped at the first two."""
    plan = [  # id, parent, level, what, layers, Spec, Vers, share of its training
        ("a", None, 0, "attn q+k+v", "0%-50%", 0.271, 0.603, 0.25),
        ("b", None, 0, "ffn up+down", "0%-50%", 0.352, 0.561, 0.5),
        ("c", None, 0, "attn q+k+v", "25%-75%", 0.291, 0.606, 0.25),
        ("d", None, 0, "ffn up+down", "25%-75%", 0.372, 0.592, 1.0),
        ("e", None, 0, "attn q+k+v", "50%-100%", 0.302, 0.598, 0.5),
        ("f", None, 0, "ffn up+down", "50%-100%", 0.381, 0.574, 1.0),
        ("g", "d", 1, "ffn up+down", "25%-50%", 0.344, 0.601, 1.0),
        ("h", "d", 1, "ffn up+down", "50%-75%", 0.366, 0.603, 1.0),
        ("i", "h", 2, "ffn up", "50%-75%", 0.331, 0.608, 0.5),
        ("j", "h", 2, "ffn down", "50%-75%", 0.362, 0.604, 1.0),
    ]  # fmt: skip
    names = ("broad range × module", "narrow range", "projection")
    nodes = []
    for key, parent, level, roles, layers, spec, vers, fraction in plan:
        ends = [end for end in (0.25, 0.5, 1.0) if end <= fraction]
        parts = [end - begin for begin, end in zip([0.0, *ends], ends, strict=False)]
        rungs = [{"fraction": end, "seconds": 240 * part + 6, "tokens": round(90_000 * part), "flops": 4e13 * part,
                  "full_sft": 0.32 * part, **_scores(spec - 0.06 * (fraction - end), vers), **_signal(spec)}
                 for end, part in zip(ends, parts, strict=True)]  # fmt: skip
        total = {name: sum(rung[name] for rung in rungs) for name in ("seconds", "tokens", "flops", "full_sft")}
        uni = spec + vers
        dropped = None if fraction == 1 else f"at {fraction:.0%} of its training behind d by 0.070 ± 0.020"
        behind = {"value": 0.969 - uni, "se": 0.009, "low": 0.951 - uni, "high": 0.987 - uni}
        nodes.append({
            "id": key, "parent": parent, "level": level, "level_name": names[level], "label": f"{roles} {layers}",
            "region": "+".join(f"{roles.split()[0]}.{part}" for part in roles.split()[1].split("+")) + f"@{layers}",
            "learning_rate": 4e-4 if "attn" in roles else 2e-4, "trained_parameters": 26_000_000 >> level, **total,
            "fraction": fraction, "dropped": dropped, "best_of_level": key in "dhj", "tied": key in "hj",
            "difference": {"value": uni - 0.723, "se": 0.018, "low": uni - 0.758, "high": uni - 0.688},
            "behind": None if key == "h" else behind, "need": {"time": 0.3 + 0.1 * level, "memory": None},
            "rungs": rungs, **_scores(spec, vers), **_signal(spec),
        })  # fmt: skip
    cost = {name: sum(node[name] for node in nodes) for name in ("seconds", "tokens", "flops", "full_sft")}
    cost |= {"seconds": cost["seconds"] + 30, "full_sft": cost["full_sft"] + 0.04}  # scoring the base
    return {
        "space": "paper", "strategy": "racing", "split": "valid", "chosen": "j", "seconds": cost["seconds"],
        "complete": True, "stopped": None, "cost": cost,
        "base": _scores(0.111, 0.612), "nodes": nodes,
        "choice": {
            "best": "h", "tied": ["h", "j"], "candidates": ["h", "j", "d", "f"], "next_best": "h", "confidence": 0.95,
            "comparisons": 4, "probability_best": 0.41, "sentence": "ffn.down@50%-75% is tied with the highest Uni.",
        },
        "test": {"base": _scores(0.115, 0.618), "chosen": _scores(0.355, 0.607)},
    } | more  # fmt: skip


def search_only(**more) -> dict:
    """The content of search.json: a search without any method."""
    report = synthetic_report(search=racing_search(), importance=None, checks=[], command="cofitune search")
    del report["methods"]
    return report | more


def _scores(spec: float, vers: float) -> dict:
    row = method("x", spec, vers, se=0.012)
    return {name: value for name, value in row.items() if name.removesuffix("_se") in SCORES}


SCORES = ("spec", "vers", "knowledge", "reasoning", "instruction", "uni")
