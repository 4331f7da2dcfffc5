"""Make the page and the pictures of a finished run anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..report import changes_table, comparison_table, methods_table, read_report, write_analysis_page, write_report
from .analyze import emit_analysis
from .app import AsJson, command, emit, tell
from .screen import Screen


@command
def report(
    folder: Annotated[Path, typer.Argument(help="A folder with report, search, comparison or analysis .json.")],
    as_json: AsJson = False,
) -> None:
    """Make the page and the pictures of a finished run anew."""
    folder = folder.expanduser()
    others = (folder / name for name in ("report.json", "search.json", "comparison.json"))
    if (folder / "analysis.json").is_file() and not any(map(Path.is_file, others)):
        emit_analysis(write_analysis_page(folder, folder), as_json)
        return
    content = read_report(folder)
    paths = write_report(content, folder)

    def show() -> None:
        if "runs" in content:
            Screen().print(comparison_table(content))
            Screen().print(changes_table(content))
        elif content["methods"]:
            Screen().print(methods_table(content))
        tell(paths["html"])

    emit({"html": str(paths["html"]), "png": [str(path) for path in paths["png"]]}, as_json, show)
