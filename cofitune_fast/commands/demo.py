"""Run the whole job on SmolLM2-135M-Instruct with the embedded data."""

from __future__ import annotations

import typer

from ..config import parse_overrides
from ..demo.settings import demo_config
from .app import AsJson, command
from .run import do_run


@command
def demo(context: typer.Context, as_json: AsJson = False) -> None:
    """Run the whole job on SmolLM2-135M-Instruct with the embedded data."""
    do_run(demo_config(parse_overrides(context.args)), as_json)
