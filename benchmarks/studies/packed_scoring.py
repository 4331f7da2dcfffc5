"""Scoring the demo's validation items on the real model: row by row, as tries, with the layers below a region cached.

python benchmarks/studies/packed_scoring.py [MODEL]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time

import torch

import cofitune_fast.scoring.answers as answers
from cofitune_fast.demo import data_folder
from cofitune_fast.demo.settings import demo_model
from cofitune_fast.models import load_model
from cofitune_fast.regions import Region
from cofitune_fast.training import MemorySettings
from cofitune_fast.trials import TrialData, Workbench

REGION = "ffn.up+ffn.down@50%-75%"


def main() -> None:
    data = data_folder()
    bench = Workbench(load_model(sys.argv[1] if len(sys.argv) > 1 else demo_model()), TrialData(
        valid=str(data / "speciality" / "valid.jsonl"), versatility_valid=str(data / "versatility" / "valid"),
    ))
    takes_tries, cached = answers.takes_tries, {"region": Region.parse(REGION), "memory": MemorySettings()}
    print(f"{torch.get_num_threads()} threads, {bench.model.dtype}; the region is {REGION}")
    bench.score("valid", **cached)  # fills the cache
    for _ in range(3):
        for name, rule, options in (("row by row", lambda *_: False, {}), ("as tries", takes_tries, {}),
                                    ("as tries, cached", takes_tries, cached)):
            answers.takes_tries = rule
            start, processor = time.perf_counter(), time.process_time()
            scores = bench.score("valid", **options)
            seconds, processor = time.perf_counter() - start, time.process_time() - processor
            print(f"{name:18}{seconds:6.1f} s ({processor:5.1f} s of processor)  "
                  f"Spec {scores.spec:.4f}  Vers {scores.vers:.4f}", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["COFITUNE_PREFIX_CACHE"] = folder
        main()
