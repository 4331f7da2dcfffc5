"""Consoles on which names stay names: no markup in them is obeyed, and no control character reaches the terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# Control characters, the halves of surrogate pairs, and the marks that turn the direction of the text around them.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_WIDE = 1000  # columns where there is no terminal


def printable(text: str) -> str:
    r"""Write characters that a terminal would obey, or cannot show, as \uXXXX, which JSON reads as the character."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def to_nowhere(stream: Any) -> None:
    """Let what is still written to a stream without a reader vanish, instead of an error at each write."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Screen(Console):
    """Console for text that holds names of people's files; lines are not broken where there is no terminal.

    FORCE_COLOR asks for colours where there is no terminal, and for nothing else of a terminal; NO_COLOR for none.
    """

    def __init__(self, **options: Any):
        asked = os.environ.get("FORCE_COLOR") and not os.environ.get("NO_COLOR") and "color_system" not in options
        if asked:
            options["color_system"] = "standard"
        super().__init__(**{"markup": False, "highlight": False, "emoji": False, **options})
        if "force_terminal" not in options:  # else rich takes a file for a terminal under FORCE_COLOR
            self._force_terminal = bool(getattr(self.file, "isatty", bool)())
        if not self.is_terminal and "width" not in options:
            self.width = _WIDE

    def on_broken_pipe(self) -> None:
        """Print no more where the reader of the output has gone; what is being done goes on."""
        self.quiet = True
        to_nowhere(self.file)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
