"""Facts and puzzles once more, asked in chat: a model that keeps to plain English answers with the whole sentence.

The rows are drawn from the choices of `knowledge` and `reasoning` in the same split, so nothing stands in two splits.
"""

from __future__ import annotations

import random
from typing import Any

SIZES = {"valid": 60, "test": 120}
INSTRUCTION = "Complete the sentence: {} ..."


def make_rows(choices: dict[str, list[dict[str, Any]]], seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Make rows {"instruction", "input", "output"} for valid and test; the output is the whole sentence.

    Args:
        choices: rows {"query", "choices", "gold"} by split.
    """
    rows = {}
    for split, size in SIZES.items():
        drawn = random.Random(f"sentences-{seed}-{split}").sample(choices[split], size)
        rows[split] = [
            {"instruction": INSTRUCTION.format(row["query"]), "input": "",
             "output": f"{row['query']} {row['choices'][row['gold']]}."}
            for row in drawn
        ]
    return rows
