"""Parts of rich, an extra, for tables in the terminal."""

from __future__ import annotations

from typing import Any

from ...errors import CofituneError


def rich_parts() -> tuple[Any, Any, Any]:
    """Return rich's module `box`, its function `escape`, and a Table that reads markup on any console.

    The consoles of the command line obey no markup, so that names of files stay names.

    Raises:
        CofituneError: rich is not installed.
    """
    try:
        from rich import box
        from rich.markup import escape
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        raise CofituneError("The table needs rich; install it with: pip install 'cofitune-fast[cli]'") from None

    class MarkupTable(Table):
        def __init__(self, *, title: str = "", caption: str = "", **options: Any):
            super().__init__(title=Text.from_markup(title, style="table.title") if title else None,
                             caption=Text.from_markup(caption, style="table.caption") if caption else None, **options)

        def add_row(self, *cells: str, **options: Any) -> None:
            super().add_row(*map(Text.from_markup, cells), **options)

    return box, escape, MarkupTable
