"""Scoring the demo's validation items with shared beginnings computed once, and row by row, on the real model.

python benchmarks/packed_scoring.py
"""

from __future__ import annotations

import time

import cofitune_fast.scoring.score as score
from cofitune_fast.demo import data_folder
from cofitune_fast.demo.settings import demo_model
from cofitune_fast.models import load_model
from cofitune_fast.trials import TrialData, Workbench

data = data_folder()
bench = Workbench(load_model(demo_model()), TrialData(
    valid=str(data / "speciality" / "valid.jsonl"), versatility_valid=str(data / "versatility" / "valid"),
))
takes_packs = score.takes_packs
bench.score("valid")
for _ in range(2):
    for name, rule in (("packed", takes_packs), ("row by row", lambda *_: False)):
        score.takes_packs = rule
        start = time.perf_counter()
        scores = bench.score("valid")
        print(f"{name:12}{time.perf_counter() - start:6.1f} s  Spec {scores.spec:.4f}  Vers {scores.vers:.4f}")
