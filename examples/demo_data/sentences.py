"""Sentences to complete, in chat: a model that keeps to plain English answers with the whole sentence.

The facts are those of `knowledge`, each in the split that it has there, so that no fact stands in two splits.
"""

from __future__ import annotations

import random

from . import knowledge

SIZES = {"valid": 60, "test": 120}
INSTRUCTION = "Complete the sentence: {} ..."


def make_rows(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Rows {"instruction", "input", "output"} for valid and test; the output is the whole sentence."""
    rows = {}
    for split, questions in knowledge.make_rows(seed).items():
        drawn = random.Random(f"sentences-{seed}-{split}").sample(questions, SIZES[split])
        rows[split] = [
            {"instruction": INSTRUCTION.format(row["query"]), "input": "",
             "output": f"{row['query']} {row['choices'][row['gold']]}."}
            for row in drawn
        ]
    return rows
