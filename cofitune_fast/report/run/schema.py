"""The shape of report.json and search.json: checked lightly, and with every optional part there afterwards."""

from __future__ import annotations

from typing import Any

from ...errors import CofituneError
from ..search.schema import search_part
from ..style.shapes import check_scores, dictionary, items, number, text, unique

GROUPS = ("knowledge", "reasoning", "instruction")
BASE = "base"
"""The name of the method row that holds the untrained model's scores."""
UNITS = ("ffn.neuron", "ffn.output", "attn.head")


def checked(report: Any, where: str = "the report") -> dict[str, Any]:
    """A checked copy of a report; see `report.read_report`. The given dictionary is left alone."""
    report = dict(dictionary(report, where))
    base = dict(dictionary(report.get("base"), f"{where}: base"))
    text(base.get("model"), f"{where}: base.model")
    number(base, "parameters", f"{where}: base")
    for key in ("fingerprint", "dtype"):
        base[key] = str(base.get(key) or "")
    if "methods" not in report and report.get("search") is None:
        raise CofituneError(f"{where}: the list `methods` is missing; it holds one entry for each compared method.")
    methods = [
        _method(entry, f"{where}: methods[{index}]")
        for index, entry in enumerate(items(report.get("methods", []), f"{where}: methods"))
    ]
    unique([method["name"] for method in methods], f"{where}: methods", "name")
    split = {"search": "", "report": ""} | dictionary(report.get("split") or {}, f"{where}: split")
    environment = dict(dictionary(report.get("environment") or {}, f"{where}: environment"))
    search, importance = report.get("search"), report.get("importance")
    return report | {
        "title": str(report.get("title") or "CoFiTune report"),
        "created": str(report.get("created") or ""),
        "command": str(report.get("command") or ""),
        "base": base,
        "methods": methods,
        "search": None if search is None else search_part(search, f"{where}: search"),
        "importance": None if importance is None else _importance(importance, f"{where}: importance"),
        "checks": [
            _check(entry, f"{where}: checks[{index}]")
            for index, entry in enumerate(items(report.get("checks") or [], f"{where}: checks"))
        ],
        "split": {use: str(name or "") for use, name in split.items()},
        "environment": environment,
        "notes": [
            text(note, f"{where}: notes[{index}]")
            for index, note in enumerate(items(report.get("notes") or [], f"{where}: notes"))
        ],
    }


def _method(entry: Any, where: str) -> dict[str, Any]:
    method = dict(dictionary(entry, where))
    where = f"{where} ({text(method.get('name'), f'{where}.name')!r})"
    check_scores(method, where)
    for key in ("trained_parameters", "seconds", "peak_memory_bytes", "learning_rate", "epochs"):
        number(method, key, where)
    details = dictionary(method.get("details") or {}, f"{where}.details")
    method["details"] = {str(task): dict(dictionary(d, f"{where}.details[{task!r}]")) for task, d in details.items()}
    return method


def _importance(entry: Any, where: str) -> dict[str, Any]:
    importance = dict(dictionary(entry, where))
    layers = []
    for index, raw in enumerate(items(importance.get("layers"), f"{where}.layers")):
        layer = dict(dictionary(raw, f"{where}.layers[{index}]"))
        if not isinstance(layer.get("layer"), int):
            raise CofituneError(f"{where}.layers[{index}]: `layer` must be the layer's number.")
        for unit in UNITS[:2]:
            if layer.get(unit) is not None:
                summary = dictionary(layer[unit], f"{where}.layers[{index}][{unit!r}]")
                for key in ("mean", "p10", "p50", "p90"):
                    number(summary, key, f"{where}.layers[{index}][{unit!r}]")
        if layer.get("attn.head") is not None:
            heads = items(layer["attn.head"], f"{where}.layers[{index}]['attn.head']")
            for position, value in enumerate(heads):
                number({"head": value}, "head", f"{where}.layers[{index}]['attn.head'][{position}]")
        layers.append(layer)
    texts = {key: str(importance.get(key) or "") for key in ("preset", "mask_mode")}
    return importance | texts | {"layers": layers}


def _check(entry: Any, where: str) -> dict[str, Any]:
    check = dict(dictionary(entry, where))
    text(check.get("name"), f"{where}.name")
    if not isinstance(check.get("passed"), bool):
        raise CofituneError(f"{where} ({check['name']!r}): `passed` must be true or false.")
    return check | {"detail": str(check.get("detail") or "")}
