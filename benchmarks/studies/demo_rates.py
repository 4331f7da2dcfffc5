"""Which learning rate the demo gives full SFT and the default region: a sweep on the demo's valid part.

python benchmarks/studies/demo_rates.py WORK --json FILE    # resumable; the test part is not read
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from cofitune_fast.anchor import NO_ANCHOR
from cofitune_fast.commands.setup import make_workbench
from cofitune_fast.demo.settings import demo_config
from cofitune_fast.json_text import read_json, write_json
from cofitune_fast.regions import DEFAULT_REGION, Region
from cofitune_fast.training import TrainOptions

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import save

SWEEPS = {"full": (1e-4, 5e-5, 2e-4), DEFAULT_REGION: (6e-4, 4e-4, 8e-4)}  # plain, and with the anchor


def sweep(work: Path) -> list[dict[str, Any]]:
    settings = demo_config({"output": str(work)})
    bench, rows = make_workbench(settings), []
    for text, rates in SWEEPS.items():
        for rate in rates:
            file = work / f"{text.replace('%', '').replace('@', '_')}-{rate:g}.json"
            if not file.is_file():
                region, anchor = Region.parse(text), bench.anchor(NO_ANCHOR if text == "full" else settings.anchor)
                training = {**settings.training, "learning_rate": rate, "save_strategy": "no"}
                with bench.trial(region), tempfile.TemporaryDirectory() as folder:
                    run = bench.train(region, folder, training, TrainOptions(anchor=anchor, memory=settings.memory))
                    scores = bench.score("valid").to_dict()
                write_json(file, {"region": text, "learning_rate": rate, "epochs": run.epochs, **scores})
            rows.append(read_json(file, "run"))
            print(text, rate, *(f"{key} {rows[-1][key]:.3f}" for key in ("spec", "vers", "uni", "uni_se")), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    save(arguments.json, "demo_rates", sweep(arguments.work))


if __name__ == "__main__":
    main()
