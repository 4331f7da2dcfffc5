"""Show what was understood of the data: rows, tokens, lengths, what is trained, and what stands twice."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..config import Config
from ..data.look import SHOWN
from ..display.data import DataView
from ..errors import CofituneError
from ..models.loading import load_outline
from ..training import evaluates
from ..trials import read_data
from ..trials.look import PARTS, SPLITS
from .app import AsJson, ConfigFile, command, emit
from .screen import Screen
from .setup import read_config, trial_data


@command
def data(
    context: typer.Context,
    config: ConfigFile = None,
    as_json: AsJson = False,
    rows: Annotated[int, typer.Option(min=0, help="How many rows to show as they are trained.")] = 3,
    seed: Annotated[int, typer.Option(help="Which rows are shown.")] = 0,
) -> None:
    """Show what was understood of the data before anything is trained: formats, bad rows by kind, tokens, lengths, a
    few rows with the trained part marked, and rows that stand twice or in two parts.

    Only the tokenizer and the configuration of the model are loaded, no weights; without a model there are no tokens.
    Status 2: the data cannot be used as they are.
    """
    content = look_at(read_config(context, config), rows, seed)
    out = Screen()
    emit(content, as_json, lambda: out.print(DataView(content), soft_wrap=not out.is_terminal))
    if not content["usable"]:
        raise typer.Exit(2)


def look_at(settings: Config, rows: int = SHOWN, seed: int = 0) -> dict[str, Any]:
    """Look at the data of a configuration and return what is known as plain values.

    Args:
        rows, seed: how many rows are rendered, and which.

    Raises:
        CofituneError: no data file is named, or the model has no tokenizer.
    """
    found = trial_data(settings)
    parts = [part for part in PARTS if getattr(found, part) is not None]
    if not parts:
        raise CofituneError("There are no data to look at: set data.train, data.valid or data.test.")
    look = read_data(found, parts, SPLITS)
    if settings.model is not None and look.files:
        model = settings.model
        outline = load_outline(model.path, gguf_file=model.gguf_file, dtype=model.dtype)
        look.encode(outline, evaluated=evaluates(settings.training))
    else:
        look.settle()
    shown = next(iter(look.files.values()), None)
    return {**look.to_dict(), "shown": shown.shown(rows, seed, look.tokenizer) if shown else []}
