"""Where a result comes from: machine, processor, versions, date, command. Written beside every figure."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cofitune_fast.files import write_json
from cofitune_fast.ops import native


def processor() -> str:
    """The processor's model name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def command() -> str:
    """The command line as a user would type it again."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    size = os.environ.get("COFITUNE_BENCH")
    return " ".join([*([f"COFITUNE_BENCH={size}"] if size else []), name, *sys.argv[1:]])


def provenance() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "native": native.isa() or native.load_error(),
    }


def save(path: str | Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Write {"benchmark", "provenance", "results"} as JSON."""
    write_json(path, {"benchmark": name, "provenance": provenance(), "results": rows})
