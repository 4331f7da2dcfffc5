"""The model cards (README.md) of a delta and of a merged model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def model_card(info: Mapping[str, Any]) -> str:
    """Write the model card, Markdown with hub metadata, from the content of cofitune.json."""
    base = info["base"]
    name, metadata = _head(base["model"], "cofitune-fast")
    shown = f"fingerprint `{base['fingerprint'][:16]}`" if base["fingerprint"] else "fingerprint not recorded"
    sections = [
        metadata,
        f"# Delta for {name}",
        f"The tensors of one region of `{name}` after fine-tuning with CoFiTune; every other tensor is the base's own.",
        f"- region: `{info['region']}` ({len(info['parameters'])} tensors)\n"
        f"- base: `{name}`, {base['dtype']}, {shown}\n"
        f"- made with: {', '.join(f'{package} {version}' for package, version in info['versions'].items())}",
        "## Use\n\n```python\nimport cofitune_fast as cf\n\n"
        'cf.load_delta(model, "path/to/this/folder")  # into the base, loaded as it is\n'
        'cf.merge("path/to/base", "path/to/this/folder", "merged")  # an ordinary model folder\n```',
    ]
    if info["scores"]:
        sections.append("## Scores\n\n" + _table(info["scores"]))
    if info["settings"]:
        sections.append(
            "## Settings\n\n```json\n" + json.dumps(info["settings"], indent=2, ensure_ascii=False) + "\n```"
        )
    return "\n\n".join(sections) + "\n"


def merged_card(info: Mapping[str, Any], copied: Sequence[str], changed: Sequence[str]) -> str:
    """Write the model card of a merged model: the base, the delta, and what of the folder is the base's own.

    info: the content of cofitune.json. copied: names of the files that are the base's. changed: what of the
    configuration is not the base's, in words.
    """
    base = info["base"]
    name, metadata = _head(base["model"], "transformers")
    files = ", ".join(f"`{file}`" for file in copied) or "none"
    sections = [
        metadata,
        f"# {name}, fine-tuned in one region",
        f"The model `{name}` with the region `{info['region']}` fine-tuned with CoFiTune; every other tensor is the "
        "base's own.",
        f"- files copied from the base as they are: {files}\n"
        f"- differences of the configuration: {', '.join(changed) or 'none'}\n"
        f"- made with: {', '.join(f'{package} {version}' for package, version in info['versions'].items())}",
        "The base's model card is not copied, as it does not describe this model; its licence applies to this one too.",
    ]
    if info["scores"]:
        sections.append("## Scores\n\n" + _table(info["scores"]))
    return "\n\n".join(sections) + "\n"


def adapter_card(info: Mapping[str, Any], export: Mapping[str, Any], sentence: str) -> str:
    """Write the model card of a delta as a PEFT adapter.

    info: the content of cofitune.json. export: the content of `peft_export.PeftExport`. sentence: how exact it is.
    """
    base = info["base"]
    name, metadata = _head(base["model"], "peft")
    sections = [
        metadata,
        f"# Adapter for {name}",
        f"The change of one region of `{name}` by fine-tuning with CoFiTune, as a PEFT adapter. {sentence}",
        f"- region: `{info['region']}`\n- base: `{name}`, {base['dtype']}\n"
        f"- made with: {', '.join(f'{package} {version}' for package, version in info['versions'].items())}",
        "## Use\n\n```python\nfrom peft import PeftModel\n\n"
        'model = PeftModel.from_pretrained(base_model, "path/to/this/folder").merge_and_unload()\n```',
    ]
    if export["low_rank"]:
        rows = {one: {"rank": entry["rank"], "relative error": entry["error"]}
                for one, entry in export["low_rank"].items()}
        sections.append("## Error of each tensor\n\n" + _table(rows))
    return "\n\n".join(sections) + "\n"


def _head(base: str, library: str) -> tuple[str, str]:
    """The name of a base to show, and the card's hub metadata.

    The hub refuses a base_model that is not a hub id, and a local path should not be published.
    """
    is_path = Path(base).exists() or not _HUB_ID.fullmatch(base)
    name = Path(base).name if is_path else base
    lines = [f"library_name: {library}", "tags:", "- cofitune"] + ([] if is_path else [f"base_model: {name}"])
    return name, "---\n" + "\n".join(lines) + "\n---"


def _table(scores: Mapping[str, Any]) -> str:
    """Markdown table of {name: number}, in two columns, or of {row: {column: number}}."""
    if not all(isinstance(value, Mapping) for value in scores.values()):
        rows = [("score", "value"), *((name, _number(value)) for name, value in scores.items())]
    else:
        columns = list(dict.fromkeys(column for row in scores.values() for column in row))
        rows = [("", *columns)]
        rows += [(name, *(_number(row.get(column, "")) for column in columns)) for name, row in scores.items()]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value).replace("|", "\\|")
