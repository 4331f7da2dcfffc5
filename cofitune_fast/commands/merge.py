"""Write base and delta as an ordinary model folder."""

from __future__ import annotations

import typer

from ..display import shown_progress
from ..models.loading import plain_folder
from ..regions import merge as merge_delta
from ..regions import read_delta
from .app import AsJson, ConfigFile, command, console, emit, tell
from .setup import needed, read_config


@command
def merge(context: typer.Context, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Write base and delta as an ordinary model folder: --model BASE --delta FOLDER --output FOLDER."""
    settings = read_config(context, config)
    delta, section = needed(settings, "delta"), needed(settings, "model")
    with shown_progress(console):
        base = plain_folder(section.path, section.gguf_file, read_delta(delta).base.dtype)
        out = merge_delta(base, delta, needed(settings, "output"))
    emit({"path": str(out)}, as_json, lambda: tell(out))
