"""The comparison in its folder: which runs it makes, what it keeps, what it refuses. Nothing is trained here."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from artefact_cases import assert_described
from comparison_cases import Recorder, make_bench, make_setup
from tiny import make_tiny_model, write_jsonl

from cofitune_fast.artefacts import checked
from cofitune_fast.compare import Comparison, ComparisonSettings
from cofitune_fast.errors import CofituneError
from cofitune_fast.methods import read_methods
from cofitune_fast.methods.entries import scores_row
from cofitune_fast.methods.folder import RunFolder
from cofitune_fast.report.comparison.changes import change_rows
from cofitune_fast.scoring import with_drifts
from cofitune_fast.training import MemorySettings

METHODS = ["full-sft", {"name": "half", "method": "wise-ft", "alphas": [0.5, 1.0]}, "region"]
RATES = {"full-sft": [1e-4, 2e-4], "half": [1e-4, 2e-4], "region": [1e-3, 2e-3]}


@pytest.fixture
def bench(tiny_run):
    return make_bench(tiny_run)


@pytest.fixture
def scored(bench):
    """Real scores of the base, to be answered to every job."""
    return {split: bench.score(split).to_dict(items=True) for split in ("valid", "test")}


@pytest.fixture
def make(bench, tiny_run, scored):
    def build(methods=METHODS, rates=RATES, seeds=(1, 2), tasks=None, answer=None, general=None, one_bench=bench,
              drift_rows=0, **setup):
        def done(job):
            cost = {"seconds": 3.0, "training_seconds": 1.0, "scoring_seconds": 2.0, "tokens": 5,
                    "trained_parameters": 7, "peak_memory_bytes": 9, "preparation_seconds": 0.0}
            return {"state": "done", "why": None, "cost": cost, "training": None,
                    "scores": [{"alpha": alpha, **scored} for alpha in job.get("alphas", [None])]}

        settings = ComparisonSettings(read_methods(methods, rates), tasks or {"letters": one_bench.data}, seeds,
                                      general, drift_rows=drift_rows)
        recorder = Recorder(one_bench, answer or done)
        return Comparison(one_bench, make_setup(tiny_run, one_bench, **setup), settings, recorder), recorder

    return build


def trained(recorder):
    return [(job["learning_rate"], job["seed"], job["alphas"]) for job in recorder.jobs if job["recipe"]]


def test_each_training_is_made_once_and_serves_all_methods_that_share_it(make, tmp_path, scored):
    comparison, recorder = make()
    content = comparison.run()
    assert recorder.jobs[0]["recipe"] is None
    both = [None, 0.5, 1.0]
    assert trained(recorder) == [(2e-4, 1, both), (2e-3, 1, [None]), (1e-4, 1, both), (1e-3, 1, [None]),
                                 (1e-4, 2, both), (1e-3, 2, [None]), (2e-4, 2, both), (2e-3, 2, [None])]
    assert content == json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert [run["state"] for run in content["runs"]] == ["done"] * 16
    assert_described("comparison", content)
    assert content["tasks"] == ["letters"] and content["seeds"] == [1, 2]
    assert content["split"] == {"choose": "valid", "report": "test"}
    assert [method["name"] for method in content["methods"]] == ["full-sft", "half", "region"]
    (half,) = [run for run in content["runs"]
               if (run["method"], run["learning_rate"], run["seed"], run["alpha"]) == ("half", 1e-4, 2, 0.5)]
    assert half["test"] == scores_row(scored["test"]) == content["base_scores"]["letters"]["test"]
    assert half["cost"]["scoring_seconds"] == 2 / 3 and half["cost"]["seconds"] == 1 + 2 / 3
    kept = json.loads((tmp_path / "run" / "runs" / f"{half['id']}.json").read_text())
    assert kept.pop("items") == scored and kept.pop("training") is None and kept == half


def test_no_worker_waits_for_the_others(make):
    """Two jobs at once, the first of which ends last: the second worker goes on through the whole grid beside it."""
    comparison, recorder = make(seeds=(1,))

    def two_at_once(jobs):
        jobs = iter(jobs)
        first, second = next(jobs), next(jobs, None)
        while second is not None:
            yield second, recorder.answer(second)
            recorder.jobs.append(second)
            second = next(jobs, None)
        recorder.jobs.append(first)
        yield first, recorder.answer(first)

    run = recorder.run
    recorder.run = lambda jobs: run(jobs) if isinstance(jobs, list) else two_at_once(jobs)
    content = comparison.run()
    assert [run["state"] for run in content["runs"]] == ["done"] * 8
    both = [None, 0.5, 1.0]
    assert trained(recorder) == [(2e-3, 1, [None]), (1e-4, 1, both), (1e-3, 1, [None]), (2e-4, 1, both)]


def test_scores_have_the_nll_of_what_is_scored_by_likelihood(scored):
    row = scores_row(scored["test"])
    tasks = scored["test"]["tasks"]
    assert row["nll"] == {name: tasks[group][name]["metrics"]["nll"]
                          for group, name in (("speciality", "speciality-test"), ("instruction", "do-test"))}
    assert "tasks" not in row and row["vers_se"] == scored["test"]["vers_se"]


def test_it_goes_on_where_it_was_stopped_and_missing_runs_are_shown(make, tmp_path):
    comparison, recorder = make()
    recorder.stop_after = 4
    with pytest.raises(KeyboardInterrupt):
        comparison.run()
    content = json.loads((tmp_path / "run" / "comparison.json").read_text())
    states = [run["state"] for run in content["runs"]]
    assert states.count("done") == 7 and states.count("missing") == 9  # 3 trainings, two of them of both full methods
    missing = next(run for run in content["runs"] if run["state"] == "missing")
    assert (missing["valid"], missing["test"], missing["cost"]) == (None, None, None)
    so_far, nothing = make()
    found = so_far.run(make=False)
    assert not nothing.jobs and found["runs"] == content["runs"]
    assert found["curves"] and found == json.loads((tmp_path / "run" / "comparison.json").read_text())
    again, rest = make()
    again.run()
    assert trained(recorder) + trained(rest) == trained(_all(make, tmp_path)[1])
    third, none = make()
    third.run()
    assert not none.jobs


def _all(make, tmp_path):
    (tmp_path / "run").rename(tmp_path / "former")
    comparison, recorder = make()
    comparison.run()
    return comparison, recorder


def test_more_methods_seeds_rates_and_tasks_run_only_what_is_missing(make, bench, tmp_path):
    make(["region"], {"region": [1e-3]}, seeds=(1,))[0].run()
    other = write_jsonl(tmp_path / "other.jsonl", [{"prompt": f"p {i}", "completion": "c"} for i in range(8)])
    tasks = {"letters": bench.data, "other": replace(bench.data, train=str(other))}
    comparison, recorder = make(["region", "lora"], {"region": [1e-3, 2e-3], "lora": [1e-2]}, seeds=(1, 2),
                                tasks=tasks)
    content = comparison.run()
    done = {("region", "letters", 1e-3, 1)}
    wanted = {(method, task, rate, seed) for method, rates in (("region", (1e-3, 2e-3)), ("lora", (1e-2,)))
              for task in tasks for rate in rates for seed in (1, 2)}
    assert len(trained(recorder)) == len(wanted - done) == 11
    assert {(run["method"], run["task"], run["learning_rate"], run["seed"]) for run in content["runs"]} == wanted
    # and a comparison of one method alone takes it out of the same folder, under any name
    comparison, recorder = make([{"name": "ours", "method": "region"}], {"ours": [1e-3]}, seeds=(2,))
    (run,) = comparison.run()["runs"]
    assert not recorder.jobs and run["method"] == "ours" and run["state"] == "done" and run["id"].startswith("ours-")


def test_a_diverged_run_is_kept_with_its_reason_and_stops_nothing(make):
    def answer(job):
        cost = {"seconds": 1.0, "training_seconds": 1.0, "scoring_seconds": 0.0}
        return {"state": "failed", "why": "The loss is nan.", "scores": [], "cost": cost, "training": None}

    comparison, _ = make()
    base = comparison.executor.answer
    comparison.executor.answer = lambda job: base(job) if job["recipe"] is None or job["seed"] == 2 else answer(job)
    content = comparison.run()
    assert {(run["seed"], run["state"], run["why"]) for run in content["runs"]} == {
        (1, "failed", "The loss is nan."), (2, "done", None)}
    again, recorder = make()
    again.run()
    assert not recorder.jobs


def test_another_base_other_data_and_other_settings_are_refused_with_the_difference(make, bench, tiny_run, tmp_path):
    make()[0].run()
    with pytest.raises(CofituneError, match=r"training\.weight_decay was not set, is 0\.5"):
        make(training={"per_device_train_batch_size": 8, "max_steps": 2, "weight_decay": 0.5})[0].run()
    make(training={"per_device_train_batch_size": 8, "max_steps": 2, "learning_rate": 1.0, "seed": 4})[0].run()
    with pytest.raises(CofituneError, match=r"letters\.limit was not set, is 3"):
        make(tasks={"letters": replace(bench.data, limit=3)})[0].run()
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "p", "completion": "c"}] * 4)
    with pytest.raises(CofituneError, match=r"the content of letters\.sha256\.train has changed"):
        make(one_bench=make_bench(tiny_run))[0].run()
    make_tiny_model(seed=1).save_pretrained(tiny_run["model"])
    with pytest.raises(CofituneError, match="the content of base has changed"):
        make(one_bench=make_bench(tiny_run))[0].run()


def test_a_folder_without_drift_goes_on_without(make, tmp_path):
    make(drift_rows=0)[0].run()
    path = tmp_path / "run" / "identity.json"
    identity = json.loads(path.read_text())
    del identity["settings"]["drift_rows"]  # as it was written before there was any
    path.write_text(json.dumps(identity))
    make(drift_rows=0)[0].run()
    with pytest.raises(CofituneError, match="drift_rows was 0, is 4"):
        make(drift_rows=4)[0].run()


def test_a_folder_from_before_the_kl_on_the_task_goes_on_and_shows_what_is_missing(make, bench, tmp_path):
    """Runs of such a folder lack the KL on the task and the whole preparation; new ones beside them have both."""
    states = {split: bench.all_base_states(split, 4) for split in ("valid", "test")}
    drifted = {split: with_drifts(bench.score(split), bench.model, states[split]).to_dict(items=True)
               for split in states}

    def answer(job):
        cost = {"seconds": 3.0, "training_seconds": 1.0, "scoring_seconds": 2.0, "tokens": 5, "trained_parameters": 7,
                "peak_memory_bytes": 9, "preparation_seconds": 4.0, "whole_preparation_seconds": 6.0,
                "anchor_tokens": 2, "written_tokens": 3}
        return {"state": "done", "why": None, "cost": cost, "training": None,
                "scores": [{"alpha": alpha, **drifted} for alpha in job.get("alphas", [None])]}

    def former(job):
        result = copy.deepcopy(answer(job))
        for key in ("whole_preparation_seconds", "anchor_tokens", "written_tokens"):
            del result["cost"][key]
        for scores in result["scores"]:
            for split in ("valid", "test"):
                del scores[split]["task_drift"]
        return result

    make(["region"], {"region": [1e-3]}, answer=former, drift_rows=4)[0].run()
    comparison, recorder = make(["region", "full-sft"], {"region": [1e-3], "full-sft": [1e-4]}, answer=answer,
                                drift_rows=4)
    content = comparison.run()
    assert len(trained(recorder)) == 2  # the new method alone
    assert_described("comparison", content)
    old, new = (next(curve for curve in content["curves"] if curve["method"] == name)["points"][0]
                for name in ("region", "full-sft"))
    assert "drift" in old["test"] and "task_drift" not in old["test"] and "task_drift" in new["test"]
    assert "whole_preparation_seconds" not in old["cost"] and new["cost"]["whole_preparation_seconds"] == 6.0
    assert set(content["runs"][-1]["test"]["task_drift"]) == {"kl", "kl_se"}
    rows = {row.name: row for row in change_rows(checked("comparison", content), "letters")}
    assert (rows["region"].drifts[1], rows["full-sft"].drifts[1]) == ("–", "0.0000")
    assert [cell.text.replace("\u00a0", " ") for cell in rows["region"].costs] == ["1.0 s", "≥ 5.0 s", "≥ 5", "–"]
    assert [cell.text.replace("\u00a0", " ") for cell in rows["full-sft"].costs] == ["1.0 s", "7.0 s", "7", "3"]


def test_what_the_suite_can_show_is_known_once_the_base_is_scored(make):
    comparison, _ = make()
    assert comparison.resolution() == []
    comparison.run()
    vers, uni = comparison.resolution()
    assert (vers["task"], vers["figure"], uni["figure"], vers["paired"]) == ("letters", "vers", "uni", False)
    assert vers["needed"] > vers["items"] and f"{vers['smallest']:.3f}" in vers["sentence"]


def test_a_second_comparison_in_the_folder_is_refused(make, tmp_path):
    comparison, _ = make()
    with RunFolder(tmp_path / "run", comparison.identity()), \
            pytest.raises(CofituneError, match="Another run is working in"):
        comparison.run()
    comparison.run()


def test_mofo_needs_the_plain_optimizer(make):
    with pytest.raises(CofituneError, match=r"The method mofo: .*memory\.gradient_release must be off"):
        make(["mofo"], {}, memory=MemorySettings(gradient_release="exact"))[0].run()


@pytest.mark.parametrize(("methods", "sentence"), [
    ([{"method": "region", "region": "ffn@9"}], "The method region: Region 'ffn@9' names layer 9"),
    (["mix"], "The method mix: A method needs general rows; set compare.general"),
    ([{"method": "region", "training": {"epochs": 1}}], "The method region: Unknown key training.epochs"),
])
def test_what_cannot_run_is_said_before_anything_is_trained(make, tmp_path, methods, sentence):
    comparison, recorder = make(["full-sft", *methods], {})
    with pytest.raises(CofituneError) as error:
        comparison.run()
    assert sentence in str(error.value) and not recorder.jobs and not (tmp_path / "run").exists()


def test_lora_without_peft_and_a_task_without_rows_are_said_too(make, bench, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(CofituneError, match="The method lora: LoRA needs the package peft: pip install"):
        make(["lora"], {})[0].run()
    with pytest.raises(CofituneError, match=r"The task letters: The data file .*gone\.jsonl does not exist"):
        make(tasks={"letters": replace(bench.data, test="gone.jsonl")})[0].run()


def test_the_plan_has_every_run_in_order_and_counts_a_training_once(make):
    comparison, recorder = make()
    rows = comparison.plan()
    assert [row["id"] for row in rows][:3] == [run.id for run in comparison.runs
                                               if run.learning_rate == 2e-4 and run.seed == 1]
    assert len(rows) == 16 and not recorder.jobs
    full, half, _ = rows[:3]
    assert full["full_sft"] == pytest.approx(half["full_sft"] + 1.0)
    region = next(row for row in rows if row["method"] == "region")
    assert half["full_sft"] < region["full_sft"] < full["full_sft"]
