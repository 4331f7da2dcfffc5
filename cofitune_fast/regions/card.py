"""The model card (README.md) of a delta."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def model_card(info: Mapping[str, Any]) -> str:
    """Write the model card, Markdown with hub metadata, from the content of cofitune.json."""
    base = info["base"]
    is_path = Path(base["model"]).exists() or not _HUB_ID.fullmatch(base["model"])
    # The hub refuses a base_model that is not a hub id, and a local path should not be published.
    name = Path(base["model"]).name if is_path else base["model"]
    metadata = ["library_name: cofitune-fast", "tags:", "- cofitune"] + ([] if is_path else [f"base_model: {name}"])
    shown = f"fingerprint `{base['fingerprint'][:16]}`" if base["fingerprint"] else "fingerprint not recorded"
    sections = [
        "---\n" + "\n".join(metadata) + "\n---",
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
