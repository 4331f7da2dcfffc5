"""Read analysis.json, which `cofitune analyze` writes, and check its shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import CofituneError
from ...files import read_json
from ..style.numbers import finite
from ..style.shapes import dictionary, items, text, unique

ROLES = ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate", "ffn.up", "ffn.down")
LENS = ("nll", "nll_se", "top1", "median_rank", "kl")


def read_analysis(path: str | Path) -> dict[str, Any]:
    """The checked content of an analysis.json, or of the one in the folder `path`.

    The first model is the base and has no "change"; all others have one.

    Raises:
        CofituneError: the file is absent, is no JSON, or a part has not the shape that the page needs.
    """
    path = Path(path)
    path = path / "analysis.json" if path.is_dir() else path
    where = str(path)
    content = dictionary(read_json(path, "analysis"), where)
    layers = content.get("layers")
    if not isinstance(layers, int) or isinstance(layers, bool) or layers < 1:
        raise CofituneError(f"{where}: `layers` must be the number of layers, not {layers!r}.")
    roles = items(content.get("roles"), f"{where}: roles")
    if not roles or any(role not in ROLES for role in roles):
        raise CofituneError(f"{where}: `roles` must be some of {', '.join(ROLES)}, not {roles!r}.")
    base = dictionary(content.get("base"), f"{where}: base")
    text(base.get("model"), f"{where}: base.model")
    data = dictionary(content.get("data"), f"{where}: data")
    models = items(content.get("models"), f"{where}: models")
    for index, model in enumerate(models):
        _check_model(dictionary(model, f"{where}: models[{index}]"), f"{where}: models[{index}]", layers, roles, index)
    if len(models) < 2:
        raise CofituneError(f"{where}: `models` must hold the base and at least one fine-tuned model.")
    unique([model["name"] for model in models], f"{where}: models", "name")
    return content | {
        "title": str(content.get("title") or "Where the speciality enters"),
        "created": str(content.get("created") or ""),
        "command": str(content.get("command") or ""),
        "base": {"fingerprint": "", "dtype": "", "parameters": None} | base,
        "data": {"file": "", "task": "", "rows": None, "tokens": None} | data,
        "environment": dictionary(content.get("environment") or {}, f"{where}: environment"),
    }


def _check_model(model: dict[str, Any], where: str, layers: int, roles: list[str], index: int) -> None:
    text(model.get("name"), f"{where}.name")
    lens = dictionary(model.get("lens"), f"{where}.lens")
    for key in LENS:
        _numbers(lens.get(key), f"{where}.lens.{key}", layers + 1)
    readable = dictionary(model.get("readable"), f"{where}.readable")
    for key in ("all", "gained"):
        part = dictionary(readable.get(key), f"{where}.readable.{key}")
        _numbers([*items(part.get("counts"), f"{where}.readable.{key}.counts"), part.get("never")],
                 f"{where}.readable.{key}", layers + 2)
    direct = dictionary(model.get("direct"), f"{where}.direct")
    for key in ("attention", "ffn"):
        _numbers(direct.get(key), f"{where}.direct.{key}", layers)
    _numbers([direct.get(key) for key in ("embedding", "rounding", "total")], f"{where}.direct", 3)
    if index:
        change = dictionary(model.get("change"), f"{where}.change")
        for key in ("relative", "share"):
            table = dictionary(change.get(key), f"{where}.change.{key}")
            for role in roles:
                row = items(table.get(role), f"{where}.change.{key}[{role!r}]")
                _numbers([0.0 if value is None else value for value in row], f"{where}.change.{key}[{role!r}]", layers)
        _numbers([dictionary(change.get("rest"), f"{where}.change.rest").get("share"), change.get("total")],
                 f"{where}.change", 2)


def _numbers(values: Any, where: str, length: int) -> None:
    values = items(values, where)
    if len(values) != length or not all(finite(value) for value in values):
        raise CofituneError(f"{where} must hold {length} numbers.")
