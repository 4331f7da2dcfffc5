"""Read a configuration of Axolotl, LLaMA-Factory or ms-swift and write ours."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import CofituneError
from ..files import write_text
from ..migration import Draft, as_yaml
from ..migration import import_config as draft_of
from ..migration.page import one_line, told
from .app import AsJson, command, emit, tell


@command
def import_config(
    file: Annotated[Path, typer.Argument(help="A YAML or JSON file, or a shell script with the tool's command.")],
    output: Annotated[Path, typer.Option(help="The configuration that is written.")] = Path("run.yaml"),
    tool: Annotated[str | None, typer.Option("--from", help="axolotl, llama-factory or ms-swift; by default it is "
                                                            "recognised by the keys.")] = None,
    model: Annotated[str | None, typer.Option(help="A local copy of the model, named in place of the file's.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing OUTPUT.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read a configuration of Axolotl, LLaMA-Factory or ms-swift, and write ours with a comment on each line.

    Of every key it is said whether it was taken, changed, not needed, not supported or not known. Nothing of the file
    is executed.
    """
    if output.exists() and not overwrite:
        raise CofituneError(f"{output} exists; choose another --output, or replace it by --overwrite.")
    draft = draft_of(file.expanduser(), tool, model)
    write_text(output, as_yaml(draft, f"cofitune train --config {shlex.quote(str(output))}"))
    notes = [asdict(note) for note in draft.notes]

    def show() -> None:
        tell(*lines_of(draft))
        counts = Counter(note.kind for note in draft.notes)
        tell(f"{output}: from {draft.tool}; " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))

    emit({"path": str(output), "tool": draft.tool, "notes": notes, "settings": draft.settings}, as_json, show)


def lines_of(draft: Draft) -> list[str]:
    """One line on each key: what became of it, the key, ours and why."""
    lines = []
    for note in draft.notes:
        value = draft.settings.get(note.ours or "")
        same = note.kind == "taken" and str(value) == str(note.value)
        ours = f" -> {note.ours}{'' if same else f': {value}'}" if note.ours else ""
        lines.append(f"{note.kind:13}  {told(note)}{ours}{f' ({one_line(note.text)})' if note.text else ''}")
    return lines
