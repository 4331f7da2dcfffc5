"""How benchmarks run under pytest: small and quick by default, at full size with COFITUNE_BENCH=full.

Only a full run writes benchmarks/results/NAME.json: figures of small tensors say nothing about memory bandwidth.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from provenance import save

FULL = os.environ.get("COFITUNE_BENCH") == "full"
ROUNDS = 7 if FULL else 2
RESULTS = Path(__file__).parent / "results"


def keep(name: str, rows: list[dict[str, Any]]) -> None:
    if FULL:
        save(RESULTS / f"{name}.json", name, rows)
