"""Write a commented run.yaml."""
from __future__ import annotations
import typer
from .app import AsJson, command
@command
def init(context: typer.Context, as_json: AsJson = False) -> None:
    """Write it."""
