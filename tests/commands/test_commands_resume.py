"""`cofitune train` again: it goes on, is finished, or is refused by what differs; signals end it with what is kept."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands.test_commands import arguments
from safetensors.torch import load_file

from cofitune_fast.training.trainer import CoFiTuneTrainer
from cofitune_fast.trials import Workbench

QUICK = {"anchor.weight": 0, "region": "ffn@3", "training.num_train_epochs": 3}  # 6 steps


@pytest.fixture
def cofitune(command_line):
    return command_line


@pytest.fixture
def at_step(monkeypatch):
    """Does something at the n-th step from now, during it."""
    def plan(number, act):
        true_step, calls = CoFiTuneTrainer.training_step, []

        def step(self, *args, **kwargs):
            calls.append(1)
            if len(calls) == number:
                act()
            return true_step(self, *args, **kwargs)

        monkeypatch.setattr(CoFiTuneTrainer, "training_step", step)

    return plan


def tensors(folder):
    return load_file(Path(folder) / "delta" / "delta.safetensors")


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)


def names(folder):
    return sorted(path.name for path in Path(folder).glob("checkpoint-*"))


def test_a_run_ended_by_sigterm_goes_on_with_the_same_command_to_the_same_bits(cofitune, tiny_run, tmp_path):
    """In a process of its own, as a batch system does it."""
    run = {**tiny_run, **QUICK, "training.num_train_epochs": 20, "training.logging_steps": 1,
           "training.logging_first_step": "true"}
    command = [sys.executable, "-m", "cofitune_fast.cli", "train", *arguments(run), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        seen = [line := child.stderr.readline()]
        while line and "step " not in line:
            seen.append(line := child.stderr.readline())
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate()
    stopped = json.loads(out)
    assert child.returncode == 143, "".join(seen) + err
    assert stopped["interrupted"] and stopped["delta"] is None and not (Path(run["output"]) / "delta").exists()
    assert f"Stopped after step {stopped['steps']} with a checkpoint; the same command goes on from there" in \
        " ".join(err.split())
    status, out, err = cofitune("train", *arguments(run), "--json")
    assert status == 0 and f"Going on from step {stopped['steps']} of 40" in err
    resumed = json.loads(out)
    undisturbed = json.loads(cofitune("train", *arguments({**run, "output": tmp_path / "whole"}), "--json")[1])
    assert same(tensors(run["output"]), tensors(tmp_path / "whole"))
    for figure in ("loss", "steps", "tokens", "epochs"):
        assert resumed[figure] == undisturbed[figure]
    assert names(run["output"]) == []


def test_a_finished_run_says_so_and_gives_the_same_result(cofitune, tiny_run, monkeypatch):
    run = {**tiny_run, **QUICK}
    first = cofitune("train", *arguments(run), "--json")
    assert first[0] == 0, first[2]
    monkeypatch.setattr(Workbench, "train", lambda *_, **__: pytest.fail("it was trained again"))
    for more in ({}, {"training.resume_from_checkpoint": "true"}, {"training.logging_steps": 3},
                 {"training.save_only_model": "true"}):
        status, out, err = cofitune("train", *arguments({**run, **more}), "--json")
        assert status == 0 and json.loads(out) == json.loads(first[1]) and "is finished; nothing is trained" in err
    assert cofitune("train", *arguments(run))[1] == cofitune("train", *arguments(run))[1]


@pytest.mark.parametrize(("change", "words"), [
    ({"training.learning_rate": 2e-2}, "training.learning_rate was 0.01, is 0.02"),
    ({"region": "ffn@2"}, 'region was "ffn@3", is "ffn@2"'),
    ({"data.max_length": 100}, "data.max_length was 512, is 100"),
    ({"loss": "dft"}, 'loss was "ce", is "dft"'),
    ({"mask": "rank"}, "mask"),
    ({"data.train": "data.valid"}, "the content of data.train has changed"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_what_is_of_another_run_is_refused_by_its_difference(cofitune, made, tmp_path, monkeypatch, change, words):
    """Both a finished delta and a checkpoint, before a model is loaded."""
    monkeypatch.setattr("cofitune_fast.commands.setup.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    for kind in ("finished", "stopped"):
        run = {**made, "output": tmp_path / kind}
        shutil.copytree(Path(made["output"]) / kind, run["output"])
        status, _, err = cofitune("train", *arguments({**run, **{key: made.get(value, value)
                                                                 for key, value in change.items()}}))
        assert status == 2 and all(part in err for part in ("settings or data", words, "--overwrite to start anew"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run and a stopped one, made once."""
    from tiny import make_tiny_model, make_tiny_tokenizer, write_jsonl

    from cofitune_fast.commands.app import console
    from cofitune_fast.commands.train import train_delta
    from cofitune_fast.config import load_config

    folder = tmp_path_factory.mktemp("made")
    make_tiny_model().save_pretrained(folder / "base")
    make_tiny_tokenizer().save_pretrained(folder / "base")
    for part, word in (("train", "say"), ("valid", "tell")):
        write_jsonl(folder / f"{part}.jsonl", [{"prompt": f"{word} {i}", "completion": f"{i}"} for i in range(8)])
    run = {"model": str(folder / "base"), **QUICK, "output": str(folder),
           **{f"data.{part}": str(folder / f"{part}.jsonl") for part in ("train", "valid")},
           "training.learning_rate": 1e-2}
    true_step = CoFiTuneTrainer.training_step

    def step(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return true_step(self, *args, **kwargs)

    train_delta(load_config(None, run), folder / "finished", overwrite=False, console=console)
    CoFiTuneTrainer.training_step = step
    try:
        result = train_delta(load_config(None, run), folder / "stopped", overwrite=False, console=console)
    finally:
        CoFiTuneTrainer.training_step = true_step
    assert result["interrupted"] and names(folder / "stopped") == ["checkpoint-1"]
    return run


def test_overwrite_keeps_the_old_run_until_the_new_one_is_written_and_goes_on_if_stopped(
    cofitune, made, tmp_path, at_step
):
    run = {**made, "output": tmp_path / "run", "training.learning_rate": 2e-2}
    shutil.copytree(Path(made["output"]) / "finished", run["output"])
    shutil.copytree(Path(made["output"]) / "stopped" / "checkpoint-1", run["output"] / "checkpoint-1")
    old = tensors(run["output"])
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    status, out, err = cofitune("train", *arguments(run), "--overwrite")
    assert status == 143 and out.startswith("no delta yet") and same(tensors(run["output"]), old), err
    assert names(run["output"]) == ["checkpoint-1", "checkpoint-2"]
    status, _, err = cofitune("train", *arguments(run), "--overwrite")
    assert status == 0 and "Going on from step 2 of 3" in err
    assert not same(tensors(run["output"]), old) and names(run["output"]) == []


def test_a_checkpoint_of_another_template_is_refused_although_no_setting_changed(cofitune, made, tmp_path):
    """The tokenizer of the base was changed in between."""
    run = {**made, "output": tmp_path / "run", "model": tmp_path / "base"}
    shutil.copytree(Path(made["output"]) / "stopped", run["output"])
    shutil.copytree(made["model"], run["model"])
    config = json.loads((run["model"] / "tokenizer_config.json").read_text())
    template = run["model"] / "chat_template.jinja"
    if template.exists():
        template.write_text(template.read_text() + " ")
    else:
        config["chat_template"] += " "
        (run["model"] / "tokenizer_config.json").write_text(json.dumps(config))
    status, _, err = cofitune("train", *arguments(run))
    assert status == 2 and "the content of template has changed" in err


def test_resume_without_a_checkpoint_is_refused(cofitune, made, tmp_path):
    run = {**made, "output": tmp_path / "run", "training.resume_from_checkpoint": "true"}
    status, _, err = cofitune("train", *arguments(run))
    assert status == 2 and "There is no complete checkpoint in" in err


def test_a_torn_newest_checkpoint_is_passed_over(cofitune, made, tmp_path):
    run = {**made, "output": tmp_path / "run"}
    shutil.copytree(Path(made["output"]) / "stopped", run["output"])
    shutil.copytree(run["output"] / "checkpoint-1", run["output"] / "checkpoint-2")
    (run["output"] / "checkpoint-2" / "trainer_state.json").write_bytes(b"")
    (run["output"] / "checkpoint-4").mkdir()  # of a run that was killed while it wrote
    status, _, err = cofitune("train", *arguments(run))
    assert status == 0 and "checkpoint-2 is damaged or incomplete" in err and "Going on from step 1 of 3" in err
    assert same(tensors(run["output"]), tensors(Path(made["output"]) / "finished"))
    assert names(run["output"]) == []


def test_the_second_signal_and_one_before_training_claim_nothing(cofitune, made, tmp_path, at_step, monkeypatch):
    def press():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    at_step(1, press)
    status, out, err = cofitune("train", *arguments({**made, "output": tmp_path / "run"}))
    assert status == 130 and not out and "No checkpoint was kept, so the same command starts anew" in err
    monkeypatch.setattr("cofitune_fast.commands.train.make_workbench",
                        lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    status, out, err = cofitune("train", *arguments({**made, "output": tmp_path / "run"}))
    assert status == 143 and not out and "No checkpoint was kept" in err


@pytest.mark.parametrize("command", ["search", "run"])
def test_sigterm_ends_the_other_commands_as_ctrl_c_does(cofitune, monkeypatch, tiny_run, command):
    stop = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    monkeypatch.setattr("cofitune_fast.commands.setup.load_model", stop)
    status, _, err = cofitune(command, *arguments(tiny_run))
    assert status == 143 and "Nothing was finished yet" in err
    monkeypatch.undo()
    monkeypatch.setattr(Workbench, "train", stop)
    status, _, err = cofitune(command, *arguments(tiny_run))
    assert status == 143 and "the same command goes on from there" in err


def test_a_run_that_changes_nothing_is_refused(cofitune, made, tmp_path):
    run = {**made, "output": tmp_path / "run", "training.learning_rate": 1e-30}
    status, _, err = cofitune("train", *arguments(run))
    assert status == 2 and "Training changed nothing: after " in err
    assert not (run["output"] / "delta").exists()


def test_a_breakdown_leaves_the_finished_delta_and_names_what_it_wrote(cofitune, made, tmp_path, monkeypatch):
    from cofitune_fast.training import trainer

    true_losses, calls = trainer.response_losses, []

    def poisoned(*args, **kwargs):
        calls.append(1)
        return [loss * (float("nan") if len(calls) == 2 else 1) for loss in true_losses(*args, **kwargs)]

    monkeypatch.setattr(trainer, "response_losses", poisoned)
    run = {**made, "output": tmp_path / "run"}
    shutil.copytree(Path(made["output"]) / "finished", run["output"])
    old = tensors(run["output"])
    status, _, err = cofitune("train", *arguments(run), "--overwrite")
    assert status == 2 and "are kept in" in err and "delta-last-good" in err
    assert same(tensors(run["output"]), old) and (run["output"] / "delta-last-good").is_dir()


def test_a_run_killed_before_its_delta_was_written_writes_it(cofitune, made, tmp_path):
    """The last checkpoint is of the last step; checkpoints that were asked for stay."""
    run = {**made, "output": tmp_path / "run", "training.save_strategy": "steps", "training.save_steps": 3}
    first = json.loads(cofitune("train", *arguments(run), "--json")[1])
    shutil.rmtree(run["output"] / "delta")
    status, out, err = cofitune("train", *arguments(run), "--json")
    again = json.loads(out)
    assert status == 0 and "Going on from step 3 of 3" in err and names(run["output"]) == ["checkpoint-3"]
    assert same(tensors(run["output"]), tensors(Path(made["output"]) / "finished"))
    assert all(again[key] == first[key] for key in ("loss", "steps", "tokens", "epochs", "run"))


def test_a_folder_keeps_the_date_of_its_first_day(tmp_path):
    from cofitune_fast.commands.kept import fix_date, note_date
    from cofitune_fast.config import load_config

    first, second, named = load_config(None, {"data.date": "2026-01-02"}), load_config(None, {}), load_config(
        None, {"data.date": "2026-03-04"})
    fix_date(first, tmp_path)
    note_date(first, tmp_path)
    fix_date(second, tmp_path)
    fix_date(named, tmp_path)
    assert (second.data.date, named.data.date) == ("2026-01-02", "2026-03-04")


@pytest.mark.parametrize("value", ["often", -1, "true", ".inf"])
def test_minutes_between_checkpoints_are_a_number(cofitune, made, tmp_path, value):
    run = {**made, "output": tmp_path / "run", "training.checkpoint_minutes": value}
    status, _, err = cofitune("train", *arguments(run))
    assert status == 2 and "training.checkpoint_minutes is" in err
