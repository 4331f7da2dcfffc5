"""Head of every report: title, date, command, base and environment."""

from __future__ import annotations

import datetime
import shlex
import sys
from pathlib import Path

from ..artefacts.head import Head
from ..environment import environment
from . import Workbench


def report_head(bench: Workbench, title: str) -> Head:
    """Make the head of a report: title, created, command, base and environment."""
    return {
        "title": title,
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command_line(),
        "base": {"model": _shown(bench.source), "fingerprint": bench.base.fingerprint, "dtype": bench.base.dtype,
                 "parameters": bench.total_parameters},
        "environment": environment(),
    }


def command_line() -> str:
    """Return the command as it was given; "" without arguments."""
    return shlex.join(["cofitune", *sys.argv[1:]]) if sys.argv[1:] else ""


def _shown(source: str) -> str:
    """Return a hub id as it is, and of a path only the last part, because reports are read on other machines."""
    return Path(source).name if Path(source).exists() else source
