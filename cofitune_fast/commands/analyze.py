"""Show layer by layer where a speciality enters a base and its deltas."""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..analysis import analyze as measure
from ..analysis import find_variants
from ..artefacts.analysis import AnalysisEntry
from ..config import Config
from ..display import shown_progress
from ..environment import environment
from ..errors import CofituneError
from ..files import writable_folder
from ..json_text import write_json
from ..models import load_model
from ..models.sharded import started_by_torchrun
from ..regions import BaseInfo
from ..report import write_analysis_page
from ..scoring import read_task
from .app import AsJson, ConfigFile, command, console, emit, tell
from .setup import needed, read_config

ROWS = 100
"""Number of rows read from the start of the data file where no limit is given."""


@command
def analyze(
    context: typer.Context,
    config: ConfigFile = None,
    as_json: AsJson = False,
    delta: Annotated[list[Path] | None, typer.Option(help="A delta or a fine-tuned model; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Rows of data.test that are read (default 100).")] = None,
) -> None:
    """Show where a speciality enters: change per layer and role, logit lens, attention against FFN."""
    settings = read_config(context, config)
    needed(settings, "model")
    deltas = [path.expanduser() for path in delta or []] or ([settings.delta] if settings.delta else [])
    with shown_progress(console):
        path = write_analysis(settings, deltas, needed(settings, "output"), limit=limit, tell=console.print)
    emit_analysis(write_analysis_page(path, path.parent), as_json)


def emit_analysis(paths: dict[str, Any], as_json: bool) -> None:
    """Print the sentences of an analysis page and the paths of its files.

    Args:
        paths: the return value of `write_analysis_page`.
    """
    content = {"json": str(paths["json"]), "html": str(paths["html"]), "png": [str(path) for path in paths["png"]]}
    emit(content, as_json, lambda: tell(*paths["sentences"], paths["html"]))


def write_analysis(
    settings: Config, deltas: Sequence[str | Path], output: str | Path, *, limit: int | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Path:
    """Measure the base and the deltas on settings.data.test and write OUTPUT/analysis.json.

    Settings that cannot work are refused before the model is loaded.

    Returns:
        The path of the written file.
    """
    section, file = settings.model, settings.data.test
    if started_by_torchrun():
        raise CofituneError("analyze runs in one process; start it without torchrun.")
    if section.quantize != "none":
        raise CofituneError("analyze compares weights in full precision; leave model.quantize out.")
    if file is None:
        raise CofituneError("There are no rows to read; give --data.test FILE with prompts and their responses.")
    variants = find_variants(deltas)
    task = read_task(file, limit=limit or ROWS, on_bad_row=settings.data.on_bad_row)
    output = writable_folder(output)
    tell(f"Loading {section.path}")
    loaded = load_model(section.path, dtype=section.dtype, device=section.device, gguf_file=section.gguf_file,
                        attn_implementation=section.attn_implementation, roles=section.roles)
    base = BaseInfo.of(loaded.model, loaded.source)
    measured = measure(loaded.model, loaded.tokenizer, task, variants, base, max_length=settings.data.max_length,
                       tell=lambda name: tell(f"Reading {name}"))
    measured["data"]["file"] = str(file)
    content: AnalysisEntry = {
        "title": settings.title if "title" in settings.model_fields_set else "Where the speciality enters",
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["cofitune", *sys.argv[1:]]),
        "base": {"model": base.model, "fingerprint": base.fingerprint, "dtype": base.dtype,
                 "parameters": loaded.model.num_parameters()},
        **measured,
        "environment": environment(),
    }  # fmt: skip
    write_json(output / "analysis.json", content)
    return output / "analysis.json"
