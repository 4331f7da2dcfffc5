"""General instructions with reference answers, scored by likelihood; written by hand, one text for each split."""

from __future__ import annotations

from . import instructions_test_split, instructions_valid_split

TEXTS = {"valid": instructions_valid_split.TEXT, "test": instructions_test_split.TEXT}
FIELDS = {"Q: ": "instruction", "I: ": "input", "A: ": "output"}


def read_responses(text: str) -> list[dict[str, str]]:
    """Rows {"instruction", "input", "output"} of blocks separated by an empty line.

    In a block, "Q: ", "I: " (may be missing) and "A: " begin a field, "|" begins a new line of the field, and any
    other line goes on with the line before.
    """
    rows = []
    for block in text.strip().split("\n\n"):
        row = {"instruction": "", "input": "", "output": ""}
        field = ""
        for line in block.split("\n"):
            if line[:3] in FIELDS:
                field = FIELDS[line[:3]]
                row[field] = line[3:]
            else:
                row[field] += f"\n{line[1:]}" if line.startswith("|") else f" {line}"
        rows.append(row)
    return rows


def make_rows() -> dict[str, list[dict[str, str]]]:
    """The rows of valid and test."""
    return {split: read_responses(text) for split, text in TEXTS.items()}
