"""Reader of report.json, search.json and comparison.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..artefacts import checked
from ..json_text import read_json
from .style.numbers import finite


def read_report(path: str | Path) -> dict[str, Any]:
    """Read and check a report.json, a comparison.json, or a search.json, which holds a search and no methods.

    Args:
        path: the file, or a folder, in which the first of report.json, search.json and comparison.json is read.

    Returns:
        The report as a dictionary in which every optional part exists: `search` and `importance` may be None, lists may
            be empty, and a score that is absent or null is NaN.

    Raises:
        CofituneError: the file is absent or no JSON, a part is not as its type in `artefacts` says, or pydantic is
            missing.
    """
    path = Path(path)
    if path.is_dir():
        names = ("report.json", "search.json", "comparison.json")
        path = next((path / name for name in names if (path / name).is_file()), path / names[0])
    return checked_report(read_json(path, "report"), path)


def checked_report(content: Any, path: str | Path = "") -> dict[str, Any]:
    """Check content that was read or made before, as `read_report` does."""
    return checked("comparison" if is_comparison(content) else "report", content, path)


def is_comparison(content: Any) -> bool:
    """True for the content of a comparison.json, False for that of a report.json or search.json."""
    return isinstance(content, dict) and "runs" in content


def plain_json(value: Any) -> Any:
    """Copy a value with null in place of NaN and infinities, so that every JSON reader accepts the file."""
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    return None if isinstance(value, float) and not finite(value) else value
