"""Displays of a running pipeline or search (a live tree, plain lines or JSON Lines), and of a space before its search.
"""

from __future__ import annotations

import sys

from rich.console import Console

from .json_lines import JsonLines
from .plain import PlainDisplay
from .progress import shown_progress
from .space import show_space
from .texts import duration, scores_text
from .tree import TreeDisplay

__all__ = ["JsonLines", "PlainDisplay", "TreeDisplay", "duration", "make_display", "scores_text", "show_space",
           "shown_progress"]


def make_display(console: Console, as_json: bool = False) -> JsonLines | PlainDisplay | TreeDisplay:
    """Return a live tree on a terminal, else plain lines; with `as_json` one JSON object per event on standard output.

    A quiet console silences all of them.
    """
    if as_json and not console.quiet:
        return JsonLines(sys.stdout)
    return TreeDisplay(console) if console.is_terminal else PlainDisplay(console)
