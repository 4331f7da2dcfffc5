"""Jobs: in rungs or at once, broken off or not, a node ends with the same bytes and scores."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file
from transformers import Trainer

from cofitune_fast.models import load_model
from cofitune_fast.models.fingerprint import tensor_digests
from cofitune_fast.regions import Region, load_delta
from cofitune_fast.scoring import score_task
from cofitune_fast.trials import TrialData, TrialSetup, Workbench, clean_node, run_job

JOB = {"id": "n", "region": "ffn.up+ffn.down@2-3", "split": "valid", "learning_rate": 1e-2, "seed": 5,
       "begin": 0.0, "end": 1.0, "last": True}


@pytest.fixture
def bench(tiny_run):
    return Workbench(load_model(tiny_run["model"]), TrialData(
        **{part: tiny_run[f"data.{part}"] for part in ("train", "valid", "test")},
        **{f"versatility_{part}": tiny_run[f"versatility.{part}"] for part in ("valid", "test")}))


@pytest.fixture
def make(bench, tiny_run, tmp_path):
    def build(folder, **changes):
        return TrialSetup({"path": tiny_run["model"]}, bench.data,
                          {"per_device_train_batch_size": 4, "max_steps": 8, "weight_decay": 0.1},
                          str(tmp_path / folder), **changes)

    return build


@pytest.fixture
def steps(monkeypatch):
    """Counts the training steps; `steps.stop_at` breaks training off like Ctrl-C."""
    class Steps(list):
        stop_at = None

    steps, step = Steps(), Trainer.training_step

    def counted(self, *args, **kwargs):
        if steps.stop_at == len(steps):
            raise KeyboardInterrupt
        steps.append(self.state.global_step)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", counted)
    return steps


def delta(setup, node="n"):
    return load_file(setup.node_folder(node) / "delta" / "delta.safetensors")


def same(left, right):
    assert left.keys() == right.keys()
    assert all(left[name].equal(right[name]) for name in left)


@pytest.fixture
def whole(bench, make):
    setup = make("whole")
    return setup, run_job(bench, setup, JOB)


def test_a_node_in_rungs_is_the_node_at_once(bench, make, whole, steps):
    setup, last = make("rungs"), None
    for begin, end in ((0.0, 0.25), (0.25, 0.6), (0.6, 1.0)):
        last = run_job(bench, setup, {**JOB, "begin": begin, "end": end, "last": end == 1.0})
        assert tensor_digests(bench.model) == bench.digests
    assert steps == list(range(8))
    same(delta(setup), delta(whole[0]))
    assert last["scores"] == whole[1]["scores"] and last["items"] == whole[1]["items"]


def test_a_result_is_plain_data(whole):
    result = whole[1]
    assert json.loads(json.dumps(result)) == json.loads(json.dumps(result))
    assert all(isinstance(item, list) for group in result["items"]["uni"]["tasks"].values() for task in group.values()
               for item in task["items"])
    assert result["cost"]["seconds"] >= result["cost"]["training_seconds"] > 0


@pytest.mark.parametrize("stop_at", [1, 3, 7])
def test_a_job_broken_off_goes_on_from_its_last_checkpoint(bench, make, whole, steps, stop_at):
    setup = make("broken", checkpoint_minutes=0.0)
    steps.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        run_job(bench, setup, JOB)
    assert tensor_digests(bench.model) == bench.digests
    steps.stop_at = None
    result = run_job(bench, setup, JOB)
    assert steps == list(range(8))  # a checkpoint after every step: none is done twice
    same(delta(setup), delta(whole[0]))
    assert result["scores"] == whole[1]["scores"]


def test_what_is_trained_but_not_scored_is_not_trained_again(bench, make, whole, steps, monkeypatch):
    for folder, jobs in (("last", [JOB]), ("rung", [{**JOB, "end": 0.5, "last": False}])):
        setup = make(folder)
        with monkeypatch.context() as patch:
            patch.setattr(bench, "score", lambda *args, **kwargs: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run_job(bench, setup, jobs[0])
        steps.clear()
        result = run_job(bench, setup, jobs[0])
        assert steps == []
        if jobs[0]["last"]:
            assert result["scores"] == whole[1]["scores"]


def test_the_base_is_a_job_too(bench, make):
    result = run_job(bench, make("base"), {"id": "base", "region": None, "split": "valid"})
    assert result["scores"] == {key: value for key, value in bench.score("valid").to_dict().items() if key != "tasks"}


def test_the_signal_is_the_likelihood_less_the_drift(bench, make, whole):
    setup = make("signal", drift_rows=8)
    base = run_job(bench, setup, {"id": "base", "region": None, "split": "valid", "measure": ["signal", "uni"]})
    assert base["scores"]["drift"] == 0.0 and base["scores"]["signal"] == -base["scores"]["nll"]
    found = run_job(bench, setup, {**JOB, "measure": ["signal"]})["scores"]
    assert found["drift"] > 0 and found["signal"] == -found["nll"] - found["drift"]
    with bench.trial(Region.parse(JOB["region"])):
        load_delta(bench.model, setup.node_folder("n") / "delta")
        score = score_task(bench.model, bench.tokenizer, bench.suite("valid").speciality[0])
    assert found["nll"] == pytest.approx(score.metrics["nll"], rel=1e-12)


def test_another_part_can_be_scored_with_the_kept_delta(bench, whole, steps):
    result = run_job(bench, whole[0], {**JOB, "split": "test"})
    assert steps == [] and result["scores"] != whole[1]["scores"]


def test_seeds_matter_and_the_order_of_the_rows_is_shared(bench, make, whole, monkeypatch):
    seen = []
    train = Workbench.train
    monkeypatch.setattr(Workbench, "train", lambda self, region, output, training, *options, **watching: (
        seen.append((training["seed"], training["data_seed"])),
        train(self, region, output, training, *options, **watching))[1])
    run_job(bench, make("other"), {**JOB, "seed": 6})
    assert seen == [(6, 42)]


def test_cleaning_up(make, bench, tmp_path):
    setup = make("clean")
    run_job(bench, setup, {**JOB, "end": 0.5, "last": False})
    folder = setup.node_folder("n")
    assert list(folder.glob("checkpoint-*"))
    run_job(bench, setup, JOB)
    clean_node(setup, "n")
    assert [path.name for path in folder.iterdir()] == ["delta"]
    clean_node(setup, "n", delta=True)
    assert not folder.exists()
    clean_node(setup, "n", delta=True)


def test_a_setup_survives_json(make):
    setup = make("json", storage="fp32")
    assert TrialSetup.from_dict(json.loads(json.dumps(setup.to_dict()))) == setup
