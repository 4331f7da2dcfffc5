"""Measure the importance of attention heads and FFN neurons."""

from __future__ import annotations

import typer

from ..display import shown_progress
from ..files import writable_folder
from ..regions import Region
from .app import AsJson, ConfigFile, command, console, emit, tell
from .setup import look_before, make_workbench, needed, read_config


@command
def importance(context: typer.Context, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Measure the importance of attention heads and FFN neurons; writes OUTPUT/importance.safetensors."""
    settings = read_config(context, config)
    path = writable_folder(needed(settings, "output")) / "importance.safetensors"
    region = Region.parse(settings.region) if settings.region else None
    with shown_progress(console):
        bench = make_workbench(settings, looks=look_before(settings, ["train"]))
        measured = bench.importance(region, **settings.importance.arguments())
        measured.save(path)
    content = {"path": str(path), "samples": measured.samples, "layers": list(measured.layers)}
    emit(content, as_json, lambda: tell(f"{path}: {measured.samples} samples, {len(measured.layers)} layers"))
