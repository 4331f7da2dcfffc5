"""Where a result comes from: machine, processor, versions, date, command. Written beside every figure."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cofitune_fast.json_text import write_json
from cofitune_fast.ops import native


def processor() -> str:
    """The processor's model name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def command() -> str:
    """The command line as a user would type it again, without the place of the results and this machine's folders."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    size = os.environ.get("COFITUNE_BENCH")
    arguments = list(sys.argv[1:])
    if "--json" in arguments:
        place = arguments.index("--json")
        del arguments[place:place + 2]
    arguments = [Path(word).name if Path(word).is_absolute() else word for word in arguments]
    return " ".join([*([f"COFITUNE_BENCH={size}"] if size else []), name, *arguments])


@cache  # a full run rewrites tracked files, after which every tree is dirty
def _said(*call: str) -> str | None:
    """The first line that a program prints; None where it is missing or fails."""
    if shutil.which(call[0]) is None:
        return None
    done = subprocess.run(call, capture_output=True, text=True, cwd=Path(__file__).parent)
    return (done.stdout.strip().splitlines() or [None])[0] if done.returncode == 0 else None


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def gpu() -> dict[str, Any]:
    """Name, driver, memory, and the CUDA version torch was built with; empty without a GPU."""
    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name, "gpu_memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count, "cuda": torch.version.cuda,
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }


def provenance() -> dict[str, Any]:
    """`commit` ends in "-dirty" where the tree held changes beyond it; `packages` are the contestants installed."""
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
        "packages": _versions("transformers", "triton", "bitsandbytes", "torchao", "torch-optimi", "trl", "peft"),
        "native": native.isa() or native.load_error(),
        "commit": _said("git", "describe", "--always", "--dirty"),
        **gpu(),
    }


def save(path: str | Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Write {"benchmark", "provenance", "results"} as JSON."""
    write_json(path, {"benchmark": name, "provenance": provenance(), "results": rows})
