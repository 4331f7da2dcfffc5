"""Read a report.json, search.json or comparison.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import read_json
from .comparison.schema import checked_comparison, is_comparison
from .run.schema import checked
from .style.numbers import finite


def read_report(path: str | Path) -> dict[str, Any]:
    """Read and check a report.json, a search.json, which holds a search and no methods, or a comparison.json.

    path: the file, or a folder, of which the first of report.json, search.json and comparison.json is read. Returns
    the report as a dictionary in which every optional part exists: `search` and `importance` may be None, lists may be
    empty, and a score that is absent or null is NaN.

    Raises:
        CofituneError: the file is absent, is no JSON, or a part has not the shape that the report needs.
    """
    path = Path(path)
    if path.is_dir():
        names = ("report.json", "search.json", "comparison.json")
        path = next((path / name for name in names if (path / name).is_file()), path / names[0])
    content = read_json(path, "report")
    return (checked_comparison if is_comparison(content) else checked)(content, str(path))


def plain_json(value: Any) -> Any:
    """A copy in which NaN and infinities are null, so that every JSON reader takes the file."""
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    return None if isinstance(value, float) and not finite(value) else value
