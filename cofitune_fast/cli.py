"""The entry point of the command line: `cofitune COMMAND --config run.yaml --section.key value`."""

from __future__ import annotations

import sys

try:
    from .commands.app import app
except KeyboardInterrupt:
    print("cofitune: stopped.", file=sys.stderr)
    raise SystemExit(130) from None
except ImportError as _error:
    if (_error.name or "").partition(".")[0] not in ("typer", "rich", "click"):
        raise
    raise SystemExit(f"cofitune: the command line needs {_error.name}: pip install 'cofitune-fast[cli]'.") from None


def main() -> None:
    """Run the command line."""
    app(prog_name="cofitune")


if __name__ == "__main__":
    main()
