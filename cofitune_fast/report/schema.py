"""Read report.json, check it lightly and fill in what may be absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CofituneError
from ..files import read_json
from .numbers import finite

SCORES = {"spec": 1.0, "vers": 1.0, "knowledge": 1.0, "reasoning": 1.0, "instruction": 1.0, "uni": 2.0}
"""Every score and its upper bound; the lower bound is 0."""
ROUNDING = 0.002  # scores may have been rounded to three decimals before they were written
GROUPS = ("knowledge", "reasoning", "instruction")
BASE = "base"
"""The name of the method row that holds the untrained model's scores."""
UNITS = ("ffn.neuron", "ffn.output", "attn.head")


def read_report(path: str | Path) -> dict[str, Any]:
    """Read and check a report.json.

    Returns the report as a dictionary in which every optional part exists: `search` and `importance` may be None,
    lists may be empty, and a score that is absent or null is NaN.

    Raises:
        CofituneError: the file is absent, is no JSON, or a part has not the shape that the report needs.
    """
    return checked(read_json(path, "report"), str(path))


def checked(report: Any, where: str = "the report") -> dict[str, Any]:
    """A checked copy of a report; see `read_report`. The given dictionary is left alone."""
    report = dict(_dictionary(report, where))
    base = dict(_dictionary(report.get("base"), f"{where}: base"))
    _text(base.get("model"), f"{where}: base.model")
    _number(base, "parameters", f"{where}: base")
    for key in ("fingerprint", "dtype"):
        base[key] = str(base.get(key) or "")
    if "methods" not in report:
        raise CofituneError(f"{where}: the list `methods` is missing; it holds one entry for each compared method.")
    methods = [
        _method(entry, f"{where}: methods[{index}]")
        for index, entry in enumerate(_list(report["methods"], f"{where}: methods"))
    ]
    _unique([method["name"] for method in methods], f"{where}: methods", "name")
    split = {"search": "", "report": ""} | _dictionary(report.get("split") or {}, f"{where}: split")
    environment = dict(_dictionary(report.get("environment") or {}, f"{where}: environment"))
    search, importance = report.get("search"), report.get("importance")
    return report | {
        "title": str(report.get("title") or "CoFiTune report"),
        "created": str(report.get("created") or ""),
        "command": str(report.get("command") or ""),
        "base": base,
        "methods": methods,
        "search": None if search is None else _search(search, f"{where}: search"),
        "importance": None if importance is None else _importance(importance, f"{where}: importance"),
        "checks": [
            _check(entry, f"{where}: checks[{index}]")
            for index, entry in enumerate(_list(report.get("checks") or [], f"{where}: checks"))
        ],
        "split": {use: str(name or "") for use, name in split.items()},
        "environment": environment,
        "notes": [
            _text(note, f"{where}: notes[{index}]")
            for index, note in enumerate(_list(report.get("notes") or [], f"{where}: notes"))
        ],
    }


def plain_json(value: Any) -> Any:
    """A copy in which NaN and infinities are null, so that every JSON reader takes the file."""
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    return None if isinstance(value, float) and not finite(value) else value


def _method(entry: Any, where: str) -> dict[str, Any]:
    method = dict(_dictionary(entry, where))
    where = f"{where} ({_text(method.get('name'), f'{where}.name')!r})"
    _scores(method, where)
    for key in ("trained_parameters", "seconds", "peak_memory_bytes", "learning_rate", "epochs"):
        _number(method, key, where)
    details = _dictionary(method.get("details") or {}, f"{where}.details")
    method["details"] = {str(task): dict(_dictionary(d, f"{where}.details[{task!r}]")) for task, d in details.items()}
    return method


def _search(entry: Any, where: str) -> dict[str, Any]:
    search = dict(_dictionary(entry, where))
    nodes, levels = [], {}
    for index, raw in enumerate(_list(search.get("nodes"), f"{where}.nodes")):
        place = f"{where}.nodes[{index}]"
        node = dict(_dictionary(raw, place))
        if not isinstance(node.get("id"), (str, int)):
            raise CofituneError(f"{place}: `id` must be a text or a number that no other node has.")
        if not isinstance(node.get("level"), int):
            raise CofituneError(f"{place}: `level` must be a whole number, not {node.get('level')!r}.")
        _scores(node, place)
        for key in ("trained_parameters", "seconds"):
            _number(node, key, place)
        node["region"] = str(node.get("region") or "")
        node["label"] = str(node.get("label") or node["region"] or node["id"])
        node["level_name"] = str(node.get("level_name") or f"level {node['level']}")
        node["best_of_level"] = bool(node.get("best_of_level"))
        nodes.append(node)
        levels[node["id"]] = node["level"]
    _unique([node["id"] for node in nodes], f"{where}.nodes", "id")
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
    _number(search, "seconds", where)
    return search | {
        "nodes": nodes,
        "space": str(search.get("space") or ""),
        "split": str(search.get("split") or ""),
    }


def _importance(entry: Any, where: str) -> dict[str, Any]:
    importance = dict(_dictionary(entry, where))
    layers = []
    for index, raw in enumerate(_list(importance.get("layers"), f"{where}.layers")):
        layer = dict(_dictionary(raw, f"{where}.layers[{index}]"))
        if not isinstance(layer.get("layer"), int):
            raise CofituneError(f"{where}.layers[{index}]: `layer` must be the layer's number.")
        for unit in UNITS[:2]:
            if layer.get(unit) is not None:
                summary = _dictionary(layer[unit], f"{where}.layers[{index}][{unit!r}]")
                for key in ("mean", "p10", "p50", "p90"):
                    _number(summary, key, f"{where}.layers[{index}][{unit!r}]")
        if layer.get("attn.head") is not None:
            heads = _list(layer["attn.head"], f"{where}.layers[{index}]['attn.head']")
            for position, value in enumerate(heads):
                _number({"head": value}, "head", f"{where}.layers[{index}]['attn.head'][{position}]")
        layers.append(layer)
    texts = {key: str(importance.get(key) or "") for key in ("preset", "mask_mode")}
    return importance | texts | {"layers": layers}


def _check(entry: Any, where: str) -> dict[str, Any]:
    check = dict(_dictionary(entry, where))
    _text(check.get("name"), f"{where}.name")
    if not isinstance(check.get("passed"), bool):
        raise CofituneError(f"{where} ({check['name']!r}): `passed` must be true or false.")
    return check | {"detail": str(check.get("detail") or "")}


def _scores(entry: dict[str, Any], where: str) -> None:
    for key, top in SCORES.items():
        value = _number(entry, key, where)
        if finite(value) and not -1e-9 <= value <= top + 1e-9:
            raise CofituneError(f"{where}: `{key}` is {value:g}, but this score lies between 0 and {top:g}.")
        error = _number(entry, f"{key}_se", where)
        if finite(error) and error < 0:
            raise CofituneError(f"{where}: `{key}_se` is {error:g}, but a standard error cannot be negative.")
    total, uni = entry["spec"] + entry["vers"], entry["uni"]
    if finite(total) and finite(uni) and abs(total - uni) > ROUNDING:
        raise CofituneError(f"{where}: `uni` is {uni:g}, but spec + vers is {total:g}; score it anew.")


def _number(entry: dict[str, Any], key: str, where: str) -> float:
    """The number at `key`, which is set to NaN when it is absent or null."""
    value = entry.get(key)
    if value is None:
        value = entry[key] = float("nan")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CofituneError(f"{where}: `{key}` must be a number or null, not {value!r}.")
    return value


def _dictionary(value: Any, where: str) -> dict[str, Any]:
    return _instance(value, dict, where, 'a JSON object {"name": value, …}')


def _list(value: Any, where: str) -> list[Any]:
    return _instance(value, list, where, "a JSON list […]")


def _text(value: Any, where: str) -> str:
    if not value:
        raise CofituneError(f"{where} must be a text that is not empty.")
    return _instance(value, str, where, "a text")


def _instance(value: Any, kind: type, where: str, what: str) -> Any:
    if not isinstance(value, kind):
        raise CofituneError(f"{where} must be {what}, not {type(value).__name__}.")
    return value


def _unique(values: list[Any], where: str, what: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise CofituneError(f"{where}: the {what} {value!r} stands there twice; every {what} must be its own.")
