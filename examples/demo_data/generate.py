"""Write the demo's data files anew: `cd examples && python -m demo_data.generate OUT`.

With the seeds as they are, the files come out byte for byte as the package carries them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cofitune_fast.files import write_text

from . import constraints, instruction, knowledge, reasoning, sentences, speciality


def make_files() -> dict[str, list[dict[str, Any]]]:
    """The rows of every file, keyed by its path below the data folder."""
    files: dict[str, list[dict[str, Any]]] = {}
    for split, rows in speciality.make_splits().items():
        files[f"speciality/{split}.jsonl"] = rows
    facts, puzzles = knowledge.make_rows(), reasoning.make_rows()
    suite = {
        "knowledge/facts": facts,
        "knowledge/fact_sentences": sentences.make_rows(facts),
        "reasoning/puzzles": puzzles,
        "reasoning/puzzle_sentences": sentences.make_rows(puzzles),
        "instruction/responses": instruction.make_rows(),
        "instruction/constraints": constraints.make_rows(),
    }
    for name, splits in suite.items():
        for split, rows in splits.items():
            files[f"versatility/{split}/{name}.jsonl"] = rows
    return files


def to_jsonl(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def generate(out: str | Path) -> list[Path]:
    """Write all files below `out` and return their paths."""
    paths = []
    for name, rows in make_files().items():
        path = Path(out) / name
        write_text(path, to_jsonl(rows))
        paths.append(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo_data.generate", description="Write the demo's data.")
    parser.add_argument("out", type=Path, help="folder to write to, e.g. ../cofitune_fast/demo/data")
    for path in generate(parser.parse_args().out):
        print(path)


if __name__ == "__main__":
    main()
