"""One region's whole way on a tiny model, as a user types it: train, evaluate, merge, evaluate what was merged."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("matplotlib")
from cofitune_fast import cli


@pytest.fixture
def cofitune(monkeypatch, capsys):
    """Runs `cofitune COMMAND --name value ...` in this process; returns its standard output."""
    def run(command, options, *flags):
        pairs = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", ["cofitune", command, *pairs, *flags])
        try:
            cli.main()
        except SystemExit as stop:
            assert not stop.code, capsys.readouterr().err
        return capsys.readouterr().out

    return run


def test_from_rows_to_a_merged_model(cofitune, tiny_run, tmp_path):
    def result(command, **changes):
        return json.loads(cofitune(command, {**tiny_run, **changes}, "--json"))

    delta, merged = tmp_path / "run" / "delta", tmp_path / "merged"
    trained = result("train", region="ffn.up+ffn.down@50%-100%", mask="rank")
    assert trained["trained_parameters"] == 2 * 2 * 32 * 48 and trained["steps"] == 2
    base, tuned = result("evaluate"), result("evaluate", delta=delta)
    assert tuned["spec"] > base["spec"] and tuned.pop("drift")["value"] > 0 and tuned.pop("task_drift")["value"] > 0

    cofitune("merge", {"model": tiny_run["model"], "delta": delta, "output": merged})
    assert result("evaluate", model=merged) == tuned
    before, after = (load_file(f"{folder}/model.safetensors") for folder in (tiny_run["model"], merged))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in (2, 3) for part in ("up", "down")}
