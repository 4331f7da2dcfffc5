"""Search section of the page: how certain the choice is, the nodes as a table, and their costs."""

from __future__ import annotations

from ...artefacts.scores import SCORES
from ..differences import Entry, share
from ..style.numbers import NBSP, count, duration, finite, percent, rate, score, standard_error
from .sentences import choice_sentence, interval, signal_text


def search_view(report: Entry) -> Entry | None:
    """Return the template's values of the search, with every number as text; None if there is no search."""
    search = report["search"]
    if not search or not search["nodes"]:
        return None
    nodes = search["nodes"]
    return {
        "rows": [_row(node, search, report["base"]["parameters"]) for node in nodes],
        "raced": any(node["rungs"] for node in nodes),
        "judged": any(node["difference"] or node["behind"] for node in nodes),
        "sentence": choice_sentence(search),
        "facts": _facts(search),
        "cost": _cost(search["cost"] if finite(search["cost"]["seconds"]) else search),
        "tests": [
            {"name": name, "cells": [_cell(row, key) for key in SCORES]}
            for name, row in (("base", search["test"]["base"]), ("chosen region", search["test"]["chosen"]))
        ] if search["test"] else [],
    }  # fmt: skip


def _row(node: Entry, search: Entry, parameters: float) -> Entry:
    marks = [("chosen", node["id"] == search["chosen"]), ("tied", node["tied"]),
             ("best of its level", node["best_of_level"] and node["id"] != search["chosen"])]  # fmt: skip
    return {
        "level": node["level_name"],
        "label": node["label"],
        "region": node["region"] if node["region"] != node["label"] else "",
        "marks": [name for name, true in marks if true],
        "dropped": node["dropped"],
        "chosen": node["id"] == search["chosen"],
        "trained": percent(share(node["trained_parameters"], parameters)),
        "parameters": count(node["trained_parameters"]),
        "rate": rate(node["learning_rate"]),
        "rung": percent(node["fraction"]),
        "scores": [_cell(node, key) for key in ("spec", "vers", "uni")],
        "signal": signal_text(node),
        "differences": [interval(node[key]) for key in ("difference", "behind")],
        "cost": _cost(node),
    }


def _facts(search: Entry) -> list[tuple[str, str]]:
    """List how certain the choice is, as (name, text) pairs."""
    choice = search["choice"]
    if not choice:
        return []
    names = {node["id"]: node["region"] or node["label"] for node in search["nodes"]}
    sure = percent(choice["confidence"])
    facts = [("highest Uni", names.get(choice["best"], "")), ("next best", names.get(choice["next_best"], ""))]
    if len(choice["tied"]) > 1:
        facts.append(("within one standard error of the highest", ", ".join(names[key] for key in choice["tied"])))
    if choice["candidates"]:
        facts.append((f"cannot be told from the highest at {sure}", ", ".join(names[k] for k in choice["candidates"])))
    if finite(choice["comparisons"]):
        text = f"{choice['comparisons']:.0f}; the {sure} holds for all of them together"
        facts.append(("comparisons made at once", text))
    if finite(choice["probability_best"]):
        facts.append(("resamples in which the chosen one is the best", percent(choice["probability_best"])))
    return [(name, text) for name, text in facts if text]


def _cost(entry: Entry) -> tuple[str, str]:
    """Format a cost in full fine-tunings and, smaller, as time; as time alone where nothing else is known."""
    clock = duration(entry["seconds"])
    if not finite(entry.get("full_sft")):
        return clock, ""
    return f"{entry['full_sft']:.2f}{NBSP}×{NBSP}full{NBSP}SFT", clock if finite(entry["seconds"]) else ""


def _cell(entry: Entry, key: str) -> tuple[str, str]:
    return score(entry[key]), standard_error(entry[f"{key}_se"]) if finite(entry[key]) else ""
