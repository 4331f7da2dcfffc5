"""The scripts for loops of one's own, run on a tiny model."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_tiny_model, make_tiny_tokenizer, write_jsonl

import cofitune_fast as cf

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loops")
    for owner in (make_tiny_model(), make_tiny_tokenizer()):
        owner.save_pretrained(folder / "model")
    write_jsonl(folder / "rows.jsonl", [{"prompt": f"say {chr(97 + n)}", "completion": chr(65 + n)} for n in range(20)])
    return folder


def run_example(name, workspace, output, monkeypatch, capsys):
    torch.manual_seed(0)
    monkeypatch.setattr(sys, "argv", [name, str(workspace / "model"), str(workspace / "rows.jsonl"), str(output)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def changed(workspace, delta):
    model, start = make_tiny_model(), make_tiny_model()
    cf.load_delta(model, delta)
    return {name: p.detach() for (name, p), q in zip(model.named_parameters(), start.parameters(), strict=True)
            if not torch.equal(p, q)}


def test_own_loop(workspace, tmp_path, monkeypatch, capsys):
    printed = run_example("own_loop.py", workspace, tmp_path / "delta", monkeypatch, capsys)
    assert printed.count("loss") == 6 and printed.startswith("ffn, layers 1-2 of 4, ")
    assert set(changed(workspace, tmp_path / "delta")) == {
        name for name, _ in cf.Region.parse("ffn@1-2").parameters(make_tiny_model())}


def test_accelerate_loop_goes_on_after_a_stop_as_without_one(workspace, tmp_path, monkeypatch, capsys, request):
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)  # of a test before this one, which had no mixed precision
    request.addfinalizer(lambda: accelerate.state.AcceleratorState._reset_state(True))
    straight = run_example("accelerate_loop.py", workspace, tmp_path / "straight", monkeypatch, capsys)
    assert straight.count("loss") == 2
    expected = changed(workspace, tmp_path / "straight" / "delta")
    assert len(expected) == 6

    save = accelerate.Accelerator.save_state

    def save_and_stop(self, folder):
        save(self, folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as stopping, pytest.raises(KeyboardInterrupt):
        stopping.setattr(accelerate.Accelerator, "save_state", save_and_stop)
        run_example("accelerate_loop.py", workspace, tmp_path / "stopped", monkeypatch, capsys)
    printed = run_example("accelerate_loop.py", workspace, tmp_path / "stopped", monkeypatch, capsys)
    assert printed.splitlines()[-2:] == [line.replace("straight", "stopped") for line in straight.splitlines()[-2:]]
    for name, value in changed(workspace, tmp_path / "stopped" / "delta").items():
        assert torch.equal(value, expected[name]), name
