"""The search as the page tells it: the headline of a search alone, how sure the choice is, and the table of nodes."""

from __future__ import annotations

from typing import Any

from .numbers import MISSING, NBSP, count, duration, finite, percent, rate, score, score_with_error, standard_error
from .sentences import Headline, Tile, search_sentence
from .shapes import SCORES
from .verdict import AHEAD, BEHIND, TIE, UNKNOWN, share

Entry = dict[str, Any]


def search_headline(search: Entry) -> Headline:
    """What a search without any method has to say: its choice, and whether that is better than the untrained base."""
    nodes = {node["id"]: node for node in search["nodes"]}
    chosen = nodes.get(search["chosen"])
    if chosen is None or not finite(chosen["uni"]):
        return Headline("The search has not chosen a region yet.", badge="no choice")
    gain = chosen["difference"] or {}
    outcome = _outcome(gain)
    badge = {
        AHEAD: "clearly better than the base", BEHIND: "clearly worse than the base",
        TIE: "no measurable difference to the base in Uni", UNKNOWN: "difference to the base not judged",
    }[outcome]  # fmt: skip
    ahead = f", {' '.join(interval(gain))} against the untrained base" if outcome != UNKNOWN else ""
    uni = score_with_error(chosen["uni"], chosen["uni_se"])
    title = f"The search chose {chosen['region'] or chosen['label']}: Uni {uni}{ahead}."
    sentences = [choice_sentence(search)]
    if outcome in (TIE, BEHIND):
        sentences.append("No training of any searched region is shown to pay in Uni." if outcome == TIE else
                         "In Uni the untrained base is better than what was chosen.")  # fmt: skip
    if search["test"]:
        now, before = (search["test"][name] for name in ("chosen", "base"))
        scores = [score_with_error(row["uni"], row["uni_se"]) for row in (now, before)]
        sentences.append(f"On the test part, which the search never saw: Uni {scores[0]}, the base {scores[1]}.")
    else:
        sentences.append("It was chosen on these very scores, so they flatter it somewhat; a test part would not.")
    tiles = [Tile(_signed(gain.get("value")), "Uni against the base"), Tile(str(len(nodes)), "regions tried")]
    if search["choice"] and finite(search["choice"]["probability_best"]):
        tiles.append(Tile(percent(search["choice"]["probability_best"]), "of resamples in which it is the best"))
    if finite(search["cost"]["full_sft"]):
        tiles.append(Tile(f"{search['cost']['full_sft']:.2f}", "full fine-tunings the search cost"))
    return Headline(title, sentences, outcome, badge, [tile for tile in tiles if tile.value != MISSING])


def choice_sentence(search: Entry) -> str:
    return search["choice"]["sentence"] if search["choice"] else search_sentence(search)


def search_view(report: Entry) -> Entry | None:
    """What the template shows of the search, every number as text; None if there is no search."""
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


def interval(difference: Entry | None) -> tuple[str, str]:
    """("+0.031", "[+0.012, +0.050]"), or a dash."""
    if not difference or not finite(difference["value"]):
        return MISSING, ""
    low, high = difference["low"], difference["high"]
    ends = f"[{_signed(low)},{NBSP}{_signed(high)}]" if finite(low) and finite(high) else ""
    return _signed(difference["value"]), ends


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
        "differences": [interval(node[key]) for key in ("difference", "behind")],
        "cost": _cost(node),
    }


def _facts(search: Entry) -> list[tuple[str, str]]:
    """How sure the choice is, as (name, text) pairs."""
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
    """In full fine-tunings and, smaller, as time; the time alone where nothing else is known."""
    clock = duration(entry["seconds"])
    if not finite(entry.get("full_sft")):
        return clock, ""
    return f"{entry['full_sft']:.2f}{NBSP}×{NBSP}full{NBSP}SFT", clock if finite(entry["seconds"]) else ""


def _outcome(difference: Entry) -> str:
    """On which side of 0 the whole interval lies."""
    low, high = difference.get("low"), difference.get("high")
    if not (finite(low) and finite(high)):
        return UNKNOWN
    return AHEAD if low > 0 else BEHIND if high < 0 else TIE


def _cell(entry: Entry, key: str) -> tuple[str, str]:
    return score(entry[key]), standard_error(entry[f"{key}_se"]) if finite(entry[key]) else ""


def _signed(value: float | None) -> str:
    return f"{value:+.3f}".replace("-", "−") if finite(value) else MISSING
