"""A model shared out over two ranks (FSDP2 on gloo): loaded, trained, saved, scored as one process does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training import sharded_cases
from typer.testing import CliRunner

from cofitune_fast.cli import app
from cofitune_fast.errors import CofituneError
from cofitune_fast.models.loading import load_model
from cofitune_fast.training.batching import FixedBatches

TESTS = Path(__file__).parents[1]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(sharded_cases.WORLD))


def torchrun(*command, **environment):
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    return subprocess.run([*TORCHRUN, *map(str, command)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One process has trained in one/RUN/delta, two ranks in RUN/delta; rank0.json and rank1.json tell of the cases."""
    folder = tmp_path_factory.mktemp("ranks")
    os.environ["COFITUNE_PREFIX_CACHE"] = str(folder / "prefix-of-one")
    losses = {name: sharded_cases.one_of_the_runs(folder / "one", name, batch=4).loss for name in sharded_cases.RUNS}
    (folder / "losses.json").write_text(json.dumps(losses))
    done = torchrun(TESTS / "training" / "sharded_cases.py", folder)
    assert (folder / "rank0.json").exists(), done.stderr
    return folder


@pytest.mark.parametrize("case", sharded_cases.CASES)
def test_two_ranks_do_it_right(folder, case):
    for rank in range(sharded_cases.WORLD):
        failures = json.loads((folder / f"rank{rank}.json").read_text())
        assert failures.get(case, "not run, for an earlier case failed") == "", f"rank {rank}:\n{failures.get(case)}"


@pytest.mark.parametrize("name", sharded_cases.RUNS)
def test_two_ranks_train_as_one_process_with_the_same_batches(folder, name):
    ours = load_file(folder / name / "delta" / "delta.safetensors")
    theirs = load_file(folder / "one" / name / "delta" / "delta.safetensors")
    assert ours.keys() == theirs.keys()
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-5, atol=1e-6)


@pytest.fixture
def settings(tiny_run, tmp_path):
    def arguments(output, batch):
        given = {**tiny_run, "region": sharded_cases.UPPER, "model.device": "cpu", "importance.samples": 4,
                 "training.per_device_train_batch_size": batch, "training.adam_epsilon": 1e-4,
                 "output": tmp_path / output}
        return ["train", *(part for key, value in given.items() for part in (f"--{key}", str(value)))]

    return arguments


def test_the_command_trains_on_two_ranks(settings, tmp_path):
    """With importance, soft mask, anchor and delta; the second rank is silent, and the files are there once."""
    done = torchrun("-m", "cofitune_fast.cli", *settings("two", 4), "--mask", "rank", "--anchor.rows", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("frozen tensors unchanged") == 1
    assert done.stderr.count("Training ffn.up+ffn.down") == 1
    one = CliRunner().invoke(app, [*settings("one", 8), "--mask", "rank", "--anchor.rows", "2"])
    assert one.exit_code == 0, one.output
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == \
        sorted(path.name for path in (tmp_path / "one").iterdir())
    for file in ("importance.safetensors", "delta/delta.safetensors"):
        ours, theirs = load_file(tmp_path / "two" / file), load_file(tmp_path / "one" / file)
        assert ours.keys() == theirs.keys()
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-6)


def test_an_error_that_all_ranks_meet_is_said_by_the_first_alone(settings):
    command = [argument for argument in settings("two", 4) if argument not in ("--region", sharded_cases.UPPER)]
    done = subprocess.run([sys.executable, "-m", "cofitune_fast.cli", *command], capture_output=True, text=True,
                          cwd=TESTS.parent, env={**os.environ, "WORLD_SIZE": "2", "RANK": "1"})
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_the_ranks_share_each_batch_of_one_process():
    lengths = [5, 9, 7, 3, 8, 6, 4, 2, 9, 5]
    for by_length in (False, True):
        whole = FixedBatches(lengths, 6, seed=1, by_length=by_length)
        parts = [FixedBatches(lengths, 3, seed=1, by_length=by_length, rank=rank, ranks=2) for rank in range(2)]
        for epoch in range(2):
            for batches in (whole, *parts):
                batches.set_epoch(epoch)
            for together, *shares in zip(whole, *parts, strict=True):
                assert shares == [together[::2], together[1::2]]


@pytest.mark.parametrize(("count", "sizes"), [(9, [2, 3]), (8, [2, 2]), (3, [1, 2]), (5, [3, 2])])
def test_no_rank_is_without_rows(count, sizes):
    """Of batches of 4 rows, one of a single row joins the one before it."""
    parts = [FixedBatches([4] * count, 2, seed=0, by_length=False, shuffle=False, rank=rank, ranks=2)
             for rank in range(2)]
    assert sorted(index for part in parts for batch in part for index in batch) == list(range(count))
    assert all(batch for part in parts for batch in part)
    assert sorted({len(batch) for part in parts for batch in part}) == sorted(set(sizes))


def test_a_quantised_model_is_not_sharded(tiny_model_folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CofituneError, match="A quantised model cannot be sharded"):
        load_model(tiny_model_folder, quantize="nf4")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(CofituneError, match="WORLD_SIZE is set, but RANK, LOCAL_RANK or MASTER_ADDR is not"):
        load_model(tiny_model_folder, device="cpu")
