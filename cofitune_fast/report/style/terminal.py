"""Parts of rich, an extra, for tables in the terminal."""

from __future__ import annotations

from typing import Any

from ...errors import CofituneError


def rich_parts() -> tuple[Any, Any, Any]:
    """Return rich's module `box`, its function `escape` and its class `Table`.

    Raises:
        CofituneError: rich is not installed.
    """
    try:
        from rich import box
        from rich.markup import escape
        from rich.table import Table
    except ImportError:
        raise CofituneError("The table needs rich; install it with: pip install 'cofitune-fast[cli]'") from None
    return box, escape, Table
