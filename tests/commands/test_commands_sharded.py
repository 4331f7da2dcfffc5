"""A search on two ranks of torchrun, which hold the model together: the same nodes as in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_search(tiny_run, tmp_path):
    def run(output, *launcher, batch):
        values = {**tiny_run, "output": str(tmp_path / output), "training.per_device_train_batch_size": batch,
                  "training.max_steps": 4, "search.rungs": "[0.5, 1]",
                  "search.space": "[{layers: [0-1, 2-3], roles: [ffn.up]}, {layers: halves}]"}
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "cofitune_fast.cli", "search", "--json",
             *(text for key, value in values.items() for text in (f"--{key}", str(value)))],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()][-1]

    return run


def test_a_search_on_two_ranks_is_that_of_one_process(run_search, tmp_path):
    alone = run_search("alone", batch=8)
    together = run_search("together", "-m", "torch.distributed.run", "--nproc-per-node", "2", batch=4)
    assert [node["region"] for node in together["nodes"]] == [node["region"] for node in alone["nodes"]]
    assert together["chosen"] == alone["chosen"]
    for one, other in zip(alone["nodes"], together["nodes"], strict=True):
        assert one["fraction"] == other["fraction"]
        for key in ("spec", "vers", "uni") if one["fraction"] == 1 else ("signal", "nll", "drift"):
            assert other[key] == pytest.approx(one[key], abs=2e-5)
    assert together["test"]["chosen"]["uni"] == pytest.approx(alone["test"]["chosen"]["uni"], abs=2e-5)
    lines = (tmp_path / "together" / "journal.jsonl").read_text().splitlines()
    assert len(lines) == len((tmp_path / "alone" / "journal.jsonl").read_text().splitlines())
