"""The model cards (README.md) of a delta and of a merged model."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache

from ..errors import CofituneError
from ..json_text import flaw
from .cells import ROLES
from .region import LayerSet

TAG = "cofitune"
SOMEWHERE = "path/to/this/folder"
"""Stands in a card for the place of the delta until it has one on the hub."""
_BASE = "path/to/the/base"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_MOST_LAYERS = 10_000  # a picture of more is an attack
_NINETY_FIVE = 1.96  # standard errors to each side of a 95 % interval of a mean
# The folders before the last part of an absolute path: in single quotes, as the shell writes blanks, or bare.
_QUOTED = re.compile(r"'(?:~|[A-Za-z]:)?[/\\](?:[^'/\\]+[/\\])*([^'/\\]*)'")
_BARE = re.compile(r"(?<![\w.:/\\~-])(?:~|[A-Za-z]:)?[/\\](?:[^\s\"',;=/\\]+[/\\])*(?=[^\s\"',;=/\\])")


@dataclass(frozen=True)
class Cells:
    """Trained cells of a model's grid of layers and roles.

    layers: number of the model's layers. roles: the model's roles, each with its trained layers as in a region's text,
    or "". elements: number of the trained numbers.
    """

    layers: int
    roles: dict[str, str]
    elements: int

    @classmethod
    def read(cls, value: Any) -> Cells | None:
        """Read what cofitune.json says; None where it says nothing that can be drawn."""
        if flaw(value, {"layers": int, "roles": {str: str}, "elements": int}):
            return None
        found = cls(value["layers"], {role: value["roles"][role] for role in ROLES if role in value["roles"]},
                    value["elements"])
        try:
            return found if found.layers <= _MOST_LAYERS and found.picture() else None
        except CofituneError:
            return None

    def picture(self) -> str:
        """Draw the grid as text: a line per role, a character per layer, trained cells full."""
        width = max((len(role) for role in self.roles), default=0)
        scale = "".join(f"{layer:<10}" for layer in range(0, self.layers, 10))
        lines = [f"{'layer':{width}}  {scale.rstrip()}"]
        for role, text in self.roles.items():
            trained = LayerSet.parse(text, text).indices(self.layers, text) if text else set()
            marks = "".join("█" if layer in trained else "·" for layer in range(self.layers))
            lines.append(f"{role:{width}}  {marks}")
        return "\n".join(lines)


def hub_id(name: str) -> str | None:
    """Return the name if it can be that of a repository on the hub, and no folder or file here has it."""
    return name if _HUB_ID.fullmatch(name) and not Path(name).exists() else None


def shown_name(base: str) -> str:
    """Return a base's name for others to read: a hub id, or the last part of a path."""
    return hub_id(base) or re.split(r"[/\\]", base.rstrip("/\\"))[-1]


def without_folders(value: Any) -> Any:
    """Return plain values in whose texts every absolute path is only its last part, as they are read elsewhere."""
    if isinstance(value, Mapping):
        return {without_folders(key): without_folders(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(entry) for entry in value]
    return _BARE.sub("", _QUOTED.sub(r"\1", value)) if isinstance(value, str) else value


def terms_of(base: str | Path) -> dict[str, Any]:
    """Return licence and language that the card of a base names; the hub is not asked."""
    card = Path(base) / "README.md"
    if not Path(base).is_dir():
        cached = try_to_load_from_cache(str(base), "README.md") if hub_id(str(base)) else None
        if not isinstance(cached, str):
            return {}
        card = Path(cached)
    try:
        header = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
        return terms(header, str(base))
    except Exception:  # whatever a stranger's card may hold
        return {}


def terms(header: Mapping[str, Any], base: str) -> dict[str, Any]:
    """Return licence and language of a base by its card's header, for the card of what is made from it.

    base: its hub id or folder. The link to its licence stays only if it leads there from elsewhere too.
    """
    found = {key: header[key] for key in ("license", "license_name", "language")
             if isinstance(header.get(key), (str, list))}
    link = header.get("license_link")
    if isinstance(link, str) and "license" in found:
        if link.startswith(("https://", "http://")):
            found["license_link"] = link
        elif hub_id(base):
            found["license_link"] = f"https://huggingface.co/{base}/blob/main/{link}"
    return found


def model_card(
    info: Mapping[str, Any], cells: Cells | None = None, terms: Mapping[str, Any] | None = None, *,
    place: str = SOMEWHERE, base_on_hub: str | None = None,
) -> str:
    """Write a delta's model card, Markdown with hub metadata.

    info: the content of cofitune.json. terms: licence and language of the base, for the header. place: the delta's hub
    id or folder, as the reader will name it. base_on_hub: the base's hub id if it is known; by default what looks like
    one.
    """
    base, name = info["base"], shown_name(info["base"]["model"])
    on_hub = base_on_hub or hub_id(base["model"])
    count = f"{len(info['parameters'])} tensors" + (f", {cells.elements:,} numbers" if cells else "")
    named = json.dumps(on_hub or _BASE, ensure_ascii=False)
    where, dtype = json.dumps(place, ensure_ascii=False), json.dumps(base["dtype"])
    merging = ["cofitune", "merge", "--model", on_hub or _BASE, "--delta", place, "--output", "merged"]
    sections = [
        _header("cofitune-fast", "adapter", on_hub, terms),
        f"# Delta for {_text(name)}",
        f"The tensors of one region of {_code(name)} after fine-tuning with CoFiTune; every other tensor is the base's "
        "own.",
        _about(info, name, count),
        *_region(cells),
        "## Use\n\n" + _fence(
            "import cofitune_fast as cf\n\n"
            f"cf.merge({named}, {where}, \"merged\")  # an ordinary model folder\n\n"
            f"loaded = cf.load_model({named}, dtype={dtype})\n"
            f"cf.load_delta(loaded.model, {where})  # or in place", "python")
        + "\n\nOr on the command line:\n\n" + _fence(shlex.join(merging), "bash")
        + "\n\nIt fits this base alone, which is checked by its fingerprint.",
        *_results(info),
        *_making(info),
    ]
    return "\n\n".join(sections) + "\n"


def merged_card(
    info: Mapping[str, Any], copied: Sequence[str], changed: Sequence[str], cells: Cells | None = None,
    terms: Mapping[str, Any] | None = None, *, base_on_hub: str | None = None,
) -> str:
    """Write the model card of a merged model: the base, the delta, and what of the folder is the base's own.

    info: the content of cofitune.json. copied: names of the files that are the base's. changed: what of the
    configuration is not the base's, in words. The others are as in `model_card`.
    """
    base, name = info["base"], shown_name(info["base"]["model"])
    files = ", ".join(map(_code, copied)) or "none"
    sections = [
        _header("transformers", "finetune", base_on_hub or hub_id(base["model"]), terms),
        f"# {_text(name)}, fine-tuned in one region",
        f"The model {_code(name)} with one region fine-tuned with CoFiTune; every other tensor is the base's own. It "
        "is loaded as every model of its kind.",
        _about(info, name, f"{len(info['parameters'])} tensors") + "\n"
        f"- files copied from the base as they are: {files}\n"
        f"- differences of the configuration: {', '.join(map(_text, changed)) or 'none'}",
        "The base's model card is not copied, as it does not describe this model; its licence applies to this one too.",
        *_region(cells),
        *_results(info),
        *_making(info),
    ]
    return "\n\n".join(sections) + "\n"


def adapter_card(info: Mapping[str, Any], export: Mapping[str, Any], sentence: str) -> str:
    """Write the model card of a delta as a PEFT adapter.

    info: the content of cofitune.json. export: the content of `peft_export.PeftExport`. sentence: how exact it is.
    """
    base, name = info["base"], shown_name(info["base"]["model"])
    on_hub = hub_id(base["model"])
    loaded = json.dumps(on_hub or _BASE, ensure_ascii=False)
    sections = [
        _header("peft", "adapter", on_hub, None),
        f"# Adapter for {_text(name)}",
        f"The change of one region of {_code(name)} by fine-tuning with CoFiTune, as a PEFT adapter. {sentence}",
        _about(info, name, f"{len(info['parameters'])} tensors"),
        "## Use\n\n" + _fence(
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            f"base = AutoModelForCausalLM.from_pretrained({loaded})\n"
            f'model = PeftModel.from_pretrained(base, "{SOMEWHERE}").merge_and_unload()', "python"),
    ]
    if export["low_rank"]:
        rows = {one: {"rank": entry["rank"], "relative error": entry["error"]}
                for one, entry in export["low_rank"].items()}
        sections.append("## Error of each tensor\n\n" + _table(rows)[0])
    return "\n\n".join(sections) + "\n"


def card_of(header: Mapping[str, Any], text: str) -> str:
    """Write a card of its header's fields and the Markdown text below."""
    return f"---\n{ModelCardData(**header, ignore_metadata_errors=True).to_yaml()}\n---\n{text}"


def _header(library: str, relation: str, base: str | None, terms: Mapping[str, Any] | None) -> str:
    """The card's hub metadata. The hub refuses a base_model that is no hub id, and what looks like one is taken for it.

    There is no model-index: the scores are of the author's own rows, and the hub shows it as results on public ones.
    """
    more = {} if base is None else {"base_model": base, "base_model_relation": relation}
    return f"---\n{ModelCardData(library_name=library, tags=[TAG], **more, **(terms or {})).to_yaml()}\n---"


def _about(info: Mapping[str, Any], name: str, count: str) -> str:
    base = info["base"]
    shown = f"fingerprint {_code(base['fingerprint'])} (SHA-256)" if base["fingerprint"] else "fingerprint not recorded"
    versions = ", ".join(f"{_text(package)} {_text(number)}" for package, number in info["versions"].items())
    return (f"- region: {_code(info['region'])} ({count})\n"
            f"- base: {_code(name)}, {_text(base['dtype'])}, {shown}\n"
            f"- made with: {versions}")


def _region(cells: Cells | None) -> list[str]:
    return [] if cells is None else ["## Region\n\n" + _fence(cells.picture(), "text")
                                     + "\n\nA column is a layer; █ is trained, · is the base's own."]


def _results(info: Mapping[str, Any]) -> list[str]:
    scores = without_folders(info["scores"])
    if not scores:
        return []
    table, intervals = _table(scores)
    note = ("\n\nIn brackets: 95 % intervals (1.96 standard errors) of each score by itself. Where models were scored "
            "on the same items, their differences are surer than these suggest." if intervals else "")
    return [f"## Scores\n\n{table}{note}"]


def _making(info: Mapping[str, Any]) -> list[str]:
    settings = dict(without_folders(info["settings"]))
    command, _ = settings.pop("command", None), settings.pop("identity", None)  # the latter is for resuming, and long
    sections = [f"## Command\n\n{_fence(command, 'bash')}"] if isinstance(command, str) and command else []
    if settings:
        sections.append("## Settings\n\n" + _fence(json.dumps(settings, indent=2, ensure_ascii=False), "json"))
    return sections


def _table(scores: Mapping[str, Any]) -> tuple[str, bool]:
    """Markdown table of {name: number}, in two columns, or of {row: {column: number}}; and whether it has intervals.

    The standard error NAME_se of a column NAME makes its interval.
    """
    if not all(isinstance(value, Mapping) for value in scores.values()):
        columns, rows = ["score", "value"], [(name, _cell(scores, name)) for name in _names(scores)]
    else:
        names = list(dict.fromkeys(name for row in scores.values() for name in _names(row)))
        columns = ["", *names]
        rows = [(row, *(_cell(values, name) for name in names)) for row, values in scores.items()]
    lines = [columns, ["---"] * len(columns), *([_text(str(row)), *values] for row, *values in rows)]
    lines[0] = [_text(str(column)) for column in columns]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines), any("[" in value for _, *values in rows
                                                                           for value in values)


def _names(row: Mapping[str, Any]) -> list[str]:
    return [name for name in row if not (name.endswith("_se") and name.removesuffix("_se") in row)]


def _cell(row: Mapping[str, Any], name: str) -> str:
    value, error = row.get(name, ""), row.get(f"{name}_se")
    if not isinstance(value, float):
        return _text(str(value))
    if not isinstance(error, (int, float)):
        return f"{value:.4f}"
    return f"{value:.4f} [{value - _NINETY_FIVE * error:.4f}, {value + _NINETY_FIVE * error:.4f}]"


def _text(text: str) -> str:
    """Escape what Markdown or HTML would read in a text, which becomes one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~!$&])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Text as a code span, with more backticks around it than it has in a row."""
    text = " ".join(text.split())
    ticks = "`" * (_most_ticks(text) + 1)
    return f"{ticks} {text} {ticks}" if "`" in text else f"{ticks}{text}{ticks}"


def _fence(text: str, language: str) -> str:
    ticks = "`" * max(3, _most_ticks(text) + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"


def _most_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
