"""Write a delta as an adapter that other tools load: PEFT's format."""

from __future__ import annotations

from typing import Annotated

import typer

from ..display import shown_progress
from ..errors import CofituneError
from ..models.loading import plain_folder
from ..regions import export_peft, read_delta
from .app import AsJson, ConfigFile, command, console, emit, tell
from .setup import needed, read_config

FORMATS = ("peft",)


@command
def export(
    context: typer.Context,
    config: ConfigFile = None,
    as_json: AsJson = False,
    format: Annotated[str, typer.Option("--as", help="peft: a folder for PeftModel.from_pretrained.")] = "peft",
    rank: Annotated[int | None, typer.Option(help="Store linear layers as LoRA of at most this rank, and say the "
                                             "error; without it, all that changed is stored whole and exact.")] = None,
) -> None:
    """Write a delta as a PEFT adapter: --model BASE --delta FOLDER --output FOLDER.

    Without --rank the adapter holds the region's modules whole, and PEFT's merge_and_unload gives the fine-tuned model
    bit for bit. With --rank it is LoRA, which is smaller, and exact only if the change has no higher rank; the error
    that is left is printed.
    """
    if format not in FORMATS:
        raise CofituneError(f"--as is {format!r}; the known format is {FORMATS[0]}.")
    settings = read_config(context, config)
    delta, section, output = needed(settings, "delta"), needed(settings, "model"), needed(settings, "output")
    with shown_progress(console):
        base = plain_folder(section.path, section.gguf_file, read_delta(delta).base.dtype)
        result = export_peft(base, delta, output, rank=rank)
    console.print(result.sentence())
    emit(result.to_dict(), as_json, lambda: tell(output))
