"""comparison.json, checked lightly: the shapes that page, pictures and table rely on."""

from __future__ import annotations

from typing import Any

from ...errors import CofituneError
from ..style.shapes import dictionary, items, number, text, unique

STATES = ("done", "missing", "failed")
COSTS = ("seconds", "training_seconds", "trained_parameters", "peak_memory_bytes")


def is_comparison(content: Any) -> bool:
    """Whether this is the content of a comparison.json, not of a report.json or search.json."""
    return isinstance(content, dict) and "runs" in content


def checked_comparison(content: Any, where: str = "the comparison") -> dict[str, Any]:
    """A checked copy in which every optional part exists.

    Raises:
        CofituneError: a part has not the shape that the page needs, or curves and verdicts are missing.
    """
    content = dict(dictionary(content, where))
    base = dict(dictionary(content.get("base"), f"{where}: base"))
    text(base.get("model"), f"{where}: base.model")
    number(base, "parameters", f"{where}: base")
    for key in ("curves", "verdicts"):
        if key not in content:
            raise CofituneError(f"{where}: `{key}` is missing; run the same cofitune compare again, which adds it.")
    methods = []
    for index, entry in enumerate(items(content.get("methods"), f"{where}: methods")):
        method = dictionary(entry, f"{where}: methods[{index}]")
        name = text(method.get("name"), f"{where}: methods[{index}].name")
        methods.append({**method, "name": name, "sentence": str(method.get("sentence") or "")})
    names = [method["name"] for method in methods]
    unique(names, f"{where}: methods", "name")
    tasks = [text(task, f"{where}: tasks[{index}]") for index, task in enumerate(items(content.get("tasks"), where))]
    unique(tasks, f"{where}: tasks", "task")
    known = {"method": names, "task": tasks}
    runs = items(content["runs"], f"{where}: runs")
    for index, run in enumerate(runs):
        place = f"{where}: runs[{index}]"
        _known(dictionary(run, place), known, place)
        if run.get("state") not in STATES:
            raise CofituneError(f"{place}: `state` is {run.get('state')!r}, but must be done, missing or failed.")
    return content | {
        "title": str(content.get("title") or "Comparison"),
        "created": str(content.get("created") or ""),
        "command": str(content.get("command") or ""),
        "base": base | {key: str(base.get(key) or "") for key in ("fingerprint", "dtype")},
        "environment": dict(dictionary(content.get("environment") or {}, f"{where}: environment")),
        "split": {use: str(name or "") for use, name in dictionary(content.get("split") or {}, where).items()},
        "tasks": tasks,
        "methods": methods,
        "seeds": items(content.get("seeds") or [], f"{where}: seeds"),
        "base_scores": dictionary(content.get("base_scores") or {}, f"{where}: base_scores"),
        "curves": [_curve(entry, known, f"{where}: curves[{index}]")
                   for index, entry in enumerate(items(content["curves"], f"{where}: curves"))],
        "verdicts": [_verdict(entry, known, f"{where}: verdicts[{index}]")
                     for index, entry in enumerate(items(content["verdicts"], f"{where}: verdicts"))],
    }  # fmt: skip


def _known(entry: dict[str, Any], known: dict[str, list[str]], where: str) -> None:
    for key, names in known.items():
        if key in entry and entry[key] not in names:
            raise CofituneError(f"{where}: the {key} {entry[key]!r} is not one that this comparison names.")


def _curve(entry: Any, known: dict[str, list[str]], where: str) -> dict[str, Any]:
    curve = dictionary(entry, where)
    _known(curve, known, where)
    points = items(curve.get("points"), f"{where}.points")
    for index, point in enumerate(points):
        place = f"{where}.points[{index}]"
        number(dictionary(point, place), "learning_rate", place)
        for part in ("test", "minus_base"):
            for figure, interval in dictionary(point.get(part), f"{place}.{part}").items():
                _interval(interval, f"{place}.{part}.{figure}")
        cost = dictionary(point.get("cost") or {}, f"{place}.cost")
        for key in COSTS:
            number(dict(cost), key, f"{place}.cost")
    corners = [index for line in dictionary(curve.get("frontier"), f"{where}.frontier").values() for index in line]
    chosen = dictionary(curve.get("chosen"), f"{where}.chosen")
    corners += [row["point"] for row in chosen.values() if row]
    strange = [index for index in corners if index is not None and not 0 <= index < len(points)]
    if strange:
        raise CofituneError(f"{where}: it names the point {strange[0]}, but has {len(points)}.")
    return curve


def _verdict(entry: Any, known: dict[str, list[str]], where: str) -> dict[str, Any]:
    verdict = dictionary(entry, where)
    _known(verdict, {"task": known["task"]}, where)
    text(verdict.get("sentence"), f"{where}.sentence")
    for index, row in enumerate(items(verdict.get("rows"), f"{where}.rows")):
        place = f"{where}.rows[{index}]"
        _known(dictionary(row, place), {"method": known["method"]}, place)
        text(row.get("sentence"), f"{place}.sentence")
        _interval(row.get("highest_spec"), f"{place}.highest_spec")
        for key in ("loss", "versatility", "mean_loss"):
            if row.get("reaches"):
                _interval(row.get(key), f"{place}.{key}")
    return verdict


def _interval(entry: Any, where: str) -> None:
    interval = dictionary(entry, where)
    for key in ("value", "low", "high"):
        number(dict(interval), key, where)
    if all(interval.get(key) is not None for key in ("low", "high")) and interval["low"] > interval["high"]:
        raise CofituneError(f"{where}: its interval ends below where it starts; make the comparison anew.")
