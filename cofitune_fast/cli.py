"""The entry point of the command line: `cofitune COMMAND --config run.yaml --section.key value`."""

from __future__ import annotations

import io
import sys

try:
    from .commands.app import app
except KeyboardInterrupt:
    print("cofitune: stopped.", file=sys.stderr)
    raise SystemExit(130) from None
except ImportError as _error:
    if (_error.name or "").partition(".")[0] not in ("typer", "rich", "click"):
        raise
    print(f"cofitune: the command line needs {_error.name}: pip install 'cofitune-fast[cli]'.", file=sys.stderr)
    raise SystemExit(2) from None


def main() -> None:
    """Run the command line."""
    print_whatever_the_encoding()
    app(prog_name="cofitune")


def print_whatever_the_encoding() -> None:
    """Let the standard streams write a question mark for a character that their encoding lacks.

    So a result is shown on a console or a pipe that is not UTF-8, where it would otherwise be lost in an error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


if __name__ == "__main__":
    main()
