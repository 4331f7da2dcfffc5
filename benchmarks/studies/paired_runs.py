"""Single runs of a comparison against one run of it, item by item: what differs beyond chance?

python benchmarks/studies/paired_runs.py RUNS METHOD RATE [--json FILE]

RUNS: the file of `forgetting_study.py keep`. METHOD, RATE: the run, not interpolated, against which all of the same
seed are held, on the test part. For each the speciality (Spec) and the instruction likelihood, and their differences
from that run's with 95 % percentile intervals over the items, which both runs share. Of what another seed would give
nothing is said.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cofitune_fast.scoring import SuiteScores, resampled_together

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import save

FIGURES = ("spec", "instruction")
DRAWS = 10_000


def compared(run: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    pair = [SuiteScores.from_dict(one["items"]["test"]) for one in (run, reference)]
    drawn = resampled_together(pair, DRAWS)
    row = {key: run[key] for key in ("method", "learning_rate", "seed", "alpha")}
    for figure in FIGURES:
        own, other = (getattr(scores, figure) for scores in pair)
        interval = np.quantile(drawn[figure][:, 0] - drawn[figure][:, 1], [0.025, 0.975])
        row[figure] = {"value": own, "difference": own - other, "interval": interval.tolist()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("method")
    parser.add_argument("rate", type=float)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    runs = [json.loads(line) for line in arguments.runs.read_text(encoding="utf-8").splitlines()[1:]]
    runs = [run for run in runs if run.get("method") and run["state"] == "done"]
    references = {run["seed"]: run for run in runs
                  if (run["method"], run["learning_rate"], run["alpha"]) == (arguments.method, arguments.rate, None)}
    if not references:
        parser.error(f"{arguments.runs} has no run of {arguments.method} at {arguments.rate:g}; it has "
                     + ", ".join(sorted({f"{run['method']} at {run['learning_rate']:g}" for run in runs})))
    rows = [compared(run, references[run["seed"]]) for run in runs if run["seed"] in references]
    for row in rows:
        shown = "  ".join("{} {value:.4f} {difference:+.4f} [{interval[0]:+.4f}, {interval[1]:+.4f}]"
                          .format(figure, **row[figure]) for figure in FIGURES)
        alpha = "" if row["alpha"] is None else f"  alpha {row['alpha']:g}"
        print(f"{row['method']:34} {row['learning_rate']:.1e}{alpha}  seed {row['seed']}  {shown}")
    if arguments.json:
        save(arguments.json, f"paired_runs against {arguments.method} at {arguments.rate:g}", rows)


if __name__ == "__main__":
    main()
