"""What every report of a comparison tells of its run."""

from __future__ import annotations

import datetime
import shlex
import sys
from pathlib import Path
from typing import Any

from ..environment import environment
from . import Workbench


def report_head(bench: Workbench, title: str) -> dict[str, Any]:
    """title, created, command, base and environment."""
    return {
        "title": title,
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["cofitune", *sys.argv[1:]]) if sys.argv[1:] else "",
        "base": {"model": _shown(bench.source), "fingerprint": bench.base.fingerprint, "dtype": bench.base.dtype,
                 "parameters": bench.total_parameters},
        "environment": environment(),
    }


def _shown(source: str) -> str:
    """A hub id as it is; of a folder or file its name, as a report goes to people on other machines."""
    return Path(source).name if Path(source).exists() else source
