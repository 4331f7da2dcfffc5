"""The part `search` of a report: checked lightly, and with every optional field there afterwards."""

from __future__ import annotations

from typing import Any

from ...errors import CofituneError
from ..style.numbers import finite
from ..style.shapes import check_scores, dictionary, items, number, text, unique

COSTS = ("seconds", "tokens", "flops", "full_sft")


def search_part(entry: Any, where: str) -> dict[str, Any]:
    """A checked copy. Older reports lack rungs, choice, costs and the base's scores: these are then None, NaN or empty.

    A node that does not say how far it was trained was trained to the end.
    """
    search = dict(dictionary(entry, where))
    found = items(search.get("nodes"), f"{where}.nodes")
    nodes = [_node(raw, f"{where}.nodes[{index}]") for index, raw in enumerate(found)]
    unique([node["id"] for node in nodes], f"{where}.nodes", "id")
    levels = {node["id"]: node["level"] for node in nodes}
    for index, node in enumerate(nodes):
        parent = node.setdefault("parent", None)
        if parent is None:
            continue
        if parent not in levels:
            raise CofituneError(f"{where}.nodes[{index}]: its parent {parent!r} is not the id of any node.")
        if levels[parent] >= node["level"]:
            raise CofituneError(
                f"{where}.nodes[{index}]: its level {node['level']} must be above its parent's level {levels[parent]}."
            )
    chosen = search.setdefault("chosen", None)
    if chosen is not None and chosen not in levels:
        raise CofituneError(f"{where}: the chosen node {chosen!r} is not the id of any node.")
    number(search, "seconds", where)
    base, test, choice = (search.get(key) for key in ("base", "test", "choice"))
    return search | {
        "nodes": nodes,
        "space": str(search.get("space") or ""),
        "strategy": str(search.get("strategy") or ""),
        "split": str(search.get("split") or ""),
        "complete": bool(search.get("complete", True)),
        "stopped": str(search.get("stopped") or ""),
        "cost": _numbers(search.get("cost") or {}, COSTS, f"{where}.cost"),
        "base": None if base is None else _scores(base, f"{where}.base"),
        "test": None if test is None else {
            name: _scores(dictionary(test, f"{where}.test").get(name), f"{where}.test.{name}")
            for name in ("base", "chosen")
        },
        "choice": None if choice is None else _choice(choice, set(levels), f"{where}.choice"),
    }  # fmt: skip


def _node(entry: Any, where: str) -> dict[str, Any]:
    node = dict(dictionary(entry, where))
    if not isinstance(node.get("id"), (str, int)):
        raise CofituneError(f"{where}: `id` must be a text or a number that no other node has.")
    if not isinstance(node.get("level"), int):
        raise CofituneError(f"{where}: `level` must be a whole number, not {node.get('level')!r}.")
    check_scores(node, where)
    for key in ("trained_parameters", "learning_rate", *COSTS):
        number(node, key, where)
    node["region"] = str(node.get("region") or "")
    node["label"] = str(node.get("label") or node["region"] or node["id"])
    node["level_name"] = str(node.get("level_name") or f"level {node['level']}")
    node["best_of_level"] = bool(node.get("best_of_level"))
    node["tied"] = bool(node.get("tied"))
    node["dropped"] = str(node.get("dropped") or "")
    for key in ("difference", "behind"):
        found = node.get(key)
        node[key] = None if found is None else _numbers(found, ("value", "se", "low", "high"), f"{where}.{key}")
    rungs = items(node.get("rungs") or [], f"{where}.rungs")
    node["rungs"] = [_rung(raw, f"{where}.rungs[{place}]") for place, raw in enumerate(rungs)]
    ends = [rung["fraction"] for rung in node["rungs"]]
    if ends != sorted(set(ends)):
        raise CofituneError(f"{where}: the fractions of its rungs must rise, but are {ends}.")
    node.setdefault("fraction", ends[-1] if ends else 1.0)
    _fraction(node, where)
    return node


def _rung(entry: Any, where: str) -> dict[str, Any]:
    rung = _scores(entry, where)
    _fraction(rung, where)
    return _numbers(rung, COSTS, where)


def _fraction(entry: dict[str, Any], where: str) -> None:
    if not 0 < number(entry, "fraction", where) <= 1:
        raise CofituneError(f"{where}: `fraction` is {entry['fraction']}, but must be above 0 and at most 1.")


def _choice(entry: Any, known: set[Any], where: str) -> dict[str, Any]:
    choice = _numbers(entry, ("confidence", "comparisons", "probability_best"), where)
    for key in ("tied", "candidates"):
        choice[key] = items(choice.get(key) or [], f"{where}.{key}")
    for key in ("best", "next_best"):
        choice.setdefault(key, None)
    named = [choice["best"], choice["next_best"], *choice["tied"], *choice["candidates"]]
    strange = [name for name in named if name is not None and name not in known]
    if strange:
        raise CofituneError(f"{where}: {strange[0]!r} is not the id of any node.")
    for key in ("confidence", "probability_best"):
        if finite(choice[key]) and not 0 <= choice[key] <= 1:
            raise CofituneError(f"{where}: `{key}` is {choice[key]:g}, but lies between 0 and 1.")
    return choice | {"sentence": text(choice.get("sentence"), f"{where}.sentence")}


def _scores(entry: Any, where: str) -> dict[str, Any]:
    scores = dict(dictionary(entry, where))
    check_scores(scores, where)
    return scores


def _numbers(entry: Any, keys: tuple[str, ...], where: str) -> dict[str, Any]:
    found = dict(dictionary(entry, where))
    for key in keys:
        number(found, key, where)
    return found
