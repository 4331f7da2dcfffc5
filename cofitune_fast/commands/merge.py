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
    """Write base and delta as an ordinary model folder: --model BASE --delta FOLDER_OR_HUB_ID --output FOLDER.

    Without --model the base is the one that the delta names.
    """
    settings = read_config(context, config)
    delta, section, output = needed(settings, "delta"), settings.model, needed(settings, "output")
    with shown_progress(console):
        info = read_delta(delta)
        if section is None:
            console.print(f"The base is the one that the delta names: {info.base.model}")
            base = plain_folder(info.base.model, dtype=info.base.dtype)
        else:
            base = plain_folder(section.path, section.gguf_file, info.base.dtype)
        out = merge_delta(base, delta, output)
    emit({"path": str(out)}, as_json, lambda: tell(out))
