"""The pipeline in one folder: which rows it has, what it keeps, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from artefact_cases import assert_described
from safetensors.torch import load_file, save_file
from tiny import make_tiny_model

from cofitune_fast.anchor import AnchorSettings
from cofitune_fast.errors import CofituneError
from cofitune_fast.models import load_model
from cofitune_fast.models.fingerprint import tensor_digests
from cofitune_fast.pipeline import Pipeline, PipelineSettings
from cofitune_fast.search import Search, SearchSettings, named_strategy, space_levels
from cofitune_fast.search.executors import InProcess
from cofitune_fast.trials import TrialData, TrialSetup, Workbench, run_job

TRAINING = {"learning_rate": 1e-2, "per_device_train_batch_size": 8, "max_steps": 2}
LEVELS = space_levels([{"layers": ["0-1", "2-3"], "roles": ["ffn.up"]}, {"layers": "halves"}])
REGION = {"region": "ffn.up@2-3"}


class Recorder:
    """An observer that keeps what it is told."""

    def __init__(self):
        self.left, self.stages, self.nodes = [], [], []

    def stage(self, title):
        self.stages.append(title)

    def remaining(self, seconds):
        self.left.append(seconds)

    def finish(self, node, best, from_journal):
        self.nodes.append((node.region, from_journal))

    def note(self, text): ...
    def level(self, level, candidates): ...
    def rung(self, fraction, candidates): ...
    def start(self, candidate, fraction): ...
    def drop(self, node): ...
    def chosen(self, node, sentence): ...


@pytest.fixture
def make_bench(tiny_run):
    def make():
        return Workbench(load_model(tiny_run["model"]), TrialData(
            **{part: tiny_run[f"data.{part}"] for part in ("train", "valid", "test")},
            **{f"versatility_{part}": tiny_run[f"versatility.{part}"] for part in ("valid", "test")}))

    return make


@pytest.fixture
def make(make_bench, tmp_path, tiny_run):
    def build(observer=None, folder="run", levels=None, search_training=None, learning_rate="fixed", training=TRAINING,
              storage="auto", anchor=None, **settings):
        bench = make_bench()
        setup = TrialSetup({"path": tiny_run["model"]}, bench.data, training, str(tmp_path / folder), storage,
                           anchor=anchor or AnchorSettings(weight=0))
        search = None
        if levels:
            nodes = replace(setup, training={**training, **(search_training or {})})
            search = Search(bench, nodes, SearchSettings(levels, "own", named_strategy("greedy"), learning_rate),
                            InProcess(lambda job: run_job(bench, nodes, job)))
        values = {"importance": {"samples": 8}, "preset": "none", **settings}
        return Pipeline(bench, setup, PipelineSettings(**values), observer, search)

    return build


@pytest.fixture
def trained(monkeypatch):
    """The regions that Workbench.train is called with, in order."""
    regions, train = [], Workbench.train
    monkeypatch.setattr(Workbench, "train", lambda self, region, *args, **kwargs: (
        regions.append(str(region)), train(self, region, *args, **kwargs))[1])
    return regions


def names(report):
    return [row["name"] for row in report["methods"]]


def test_nothing_to_train_is_refused_before_a_folder_is_made(make, tmp_path):
    with pytest.raises(CofituneError, match="Nothing to train: give a region, or a search space"):
        make()
    assert not (tmp_path / "run").exists()


def test_without_a_mask_there_is_no_fine_row_and_no_importance(make, tmp_path, trained):
    report = make(**REGION).run()
    assert names(report) == ["base", "CoFiTune coarse", "full SFT"]
    assert report["importance"] is None and report["checks"] == []
    assert not (tmp_path / "run" / "importance.safetensors").exists() and not (tmp_path / "run" / "delta").exists()
    assert trained == ["ffn.up@2-3", "full"]


def test_an_anchor_alone_makes_a_fine_row(make, monkeypatch):
    calls, train = [], Workbench.train
    monkeypatch.setattr(Workbench, "train", lambda self, *args, **watching: (
        calls.append((args[3].anchor, args[3].masks)), train(self, *args, **watching))[1])
    anchor = AnchorSettings(weight=2.0, rows=1, texts=4, tokens=4)
    report = make(anchor=anchor, **REGION).run()
    assert names(report) == ["base", "CoFiTune coarse", "CoFiTune fine", "full SFT"] and report["importance"] is None
    assert [check["passed"] for check in report["checks"]] == [True, True, True]
    coarse, fine, full = calls
    assert coarse == full == (None, None) and fine[0].settings == anchor and fine[1] is None
    runs = {row["name"]: row["run"] for row in report["methods"] if row["run"]}
    assert runs["CoFiTune coarse"]["anchor_kl"] is None and runs["CoFiTune fine"]["anchor_kl"] is not None


def test_with_a_region_there_is_no_search(make, tmp_path, trained):
    observer = Recorder()
    pipeline = make(observer, preset="rank", **REGION)
    report = pipeline.run("A title")
    assert report["search"] is None and observer.nodes == [] and report["title"] == "A title"
    assert [stage for stage in observer.stages if "search" in stage.lower()] == []
    assert names(report) == ["base", "CoFiTune coarse", "CoFiTune fine", "full SFT"]
    assert [row["region"] for row in report["methods"]] == [None, "ffn.up@2-3", "ffn.up@2-3", "full"]
    assert trained == ["ffn.up@2-3", "ffn.up@2-3", "full"]
    assert [check["passed"] for check in report["checks"]] == [True, True, True]
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == report
    assert observer.left[-1] == 0
    with pytest.raises(CofituneError, match=r"No search space is set; give search\.space"):
        pipeline.search()


def test_the_rows_tell_what_was_trained_at_what_cost(make):
    report = make(preset="rank", full_sft_training={"learning_rate": 1e-3}, **REGION).run()
    base, coarse, fine, full = report["methods"]
    total = sum(parameter.numel() for parameter in make_tiny_model().parameters())
    assert [row["trained_parameters"] for row in report["methods"]] == [0, 2 * 32 * 48, 2 * 32 * 48, total]
    assert [row["learning_rate"] for row in report["methods"]] == [None, 1e-2, 1e-2, 1e-3]
    assert [row["run"] and row["run"]["steps"] for row in report["methods"]] == [None, 2, 2, 2]
    for row in report["methods"]:
        assert row["uni"] == row["spec"] + row["vers"]
    scores = [(row["spec"], row["vers"]) for row in (base, full, coarse, fine)]
    assert len(set(scores)) == 4  # each method scored what it trained itself


def test_a_search_trains_its_nodes_then_the_chosen_region(make, trained):
    observer = Recorder()
    report = make(observer, levels=LEVELS, search_training={"max_steps": 1}).run()
    nodes = report["search"]["nodes"]
    assert trained[:2] == ["ffn.up@0-1", "ffn.up@2-3"] and len(nodes) == 4
    chosen = next(node for node in nodes if node["id"] == report["search"]["chosen"])
    best = next(node for node in nodes if node["id"] == report["search"]["choice"]["best"])
    assert best["uni"] == max(node["uni"] for node in nodes)
    assert chosen["trained_parameters"] == min(node["trained_parameters"] for node in nodes if node["tied"])
    assert trained == [*(node["region"] for node in nodes), chosen["region"], "full"]
    assert report["search"]["space"] == "own"
    assert observer.nodes == [(node["region"], False) for node in nodes]


def test_finished_methods_and_nodes_are_kept_and_not_trained_again(make, tmp_path, trained):
    settings = {"levels": LEVELS, "preset": "rank"}
    first = make(**settings).run()
    assert_described("report", first)
    files = {path.name: path.read_bytes() for path in (tmp_path / "run" / "runs").iterdir()}
    assert {name.partition("-task")[0] for name in files} == {"base", "CoFiTune-coarse", "CoFiTune-fine", "full-SFT"}
    assert len(files) == 4
    assert len(trained) == 4 + 3
    trained.clear()
    observer = Recorder()
    again = make(observer, **settings).run()
    assert trained == []
    assert {path.name: path.read_bytes() for path in (tmp_path / "run" / "runs").iterdir()} == files
    assert again["methods"] == first["methods"] and again["search"] == first["search"]
    assert again["importance"] == first["importance"] and again["checks"] == first["checks"]
    assert all(from_journal for _, from_journal in observer.nodes) and len(observer.nodes) == 4

    next((tmp_path / "run" / "runs").glob("full-SFT-*.json")).unlink()
    third = make(**settings).run()
    assert trained == ["full"]
    for key in ("spec", "vers", "knowledge", "reasoning", "instruction"):
        assert third["methods"][3][key] == first["methods"][3][key]


def test_search_alone_shares_the_journal_with_the_whole_run(make, trained):
    result = make(levels=LEVELS).search()
    assert len(trained) == len(result.nodes) == 4
    report = make(levels=LEVELS).run()
    assert trained[4:] == [str(result.region), "full"]
    assert report["search"]["chosen"] == result.chosen.id


def test_the_test_part_is_read_once_and_after_the_search(make, monkeypatch, tmp_path):
    pipeline, read, score = make(levels=LEVELS), [], Workbench.score
    monkeypatch.setattr(Workbench, "score", lambda self, split, *args, **kwargs: (
        read.append(split), score(self, split, *args, **kwargs))[1])
    result = pipeline.search()
    assert read == ["valid"] * (1 + len(result.nodes)) + ["test", "test"]
    assert set(result.test) == {"base", "chosen"} and result.test["base"] != result.test["chosen"]
    assert make(levels=LEVELS).search().test == result.test and len(read) == len(result.nodes) + 3


def test_the_final_runs_have_the_chosen_nodes_learning_rate(make):
    report = make(full_sft=False, levels=LEVELS, learning_rate="size",
                  search_training={"learning_rate": 5e-3, "max_steps": 1}).run()
    chosen = next(node for node in report["search"]["nodes"] if node["id"] == report["search"]["chosen"])
    coarse = next(row for row in report["methods"] if row["name"] == "CoFiTune coarse")
    assert coarse["learning_rate"] == pytest.approx(2 * chosen["learning_rate"])  # trained at 1e-2 instead of 5e-3


def test_after_a_search_alone_nothing_is_left(make):
    observer = Recorder()
    make(observer, levels=LEVELS).search()
    assert observer.left[-1] == 0


CHANGES = [
    ({"training": {**TRAINING, "learning_rate": 0.5}}, "training.learning_rate was 0.01, is 0.5"),
    ({"preset": "paper"}, 'mask was ["none", "update"], is ["paper", "update"]'),
    ({"region": "ffn.up@3"}, 'region was "ffn.up@2-3", is "ffn.up@3"'),
    ({"storage": "fp32"}, 'storage was "auto", is "fp32"'),
    ({"importance": {"samples": 4}}, "importance.samples was 8, is 4"),
    ({"region": None, "levels": LEVELS}, 'region was "ffn.up@2-3", is not set'),
]


def test_a_folder_of_other_settings_is_refused_before_anything_is_trained(make, tmp_path, trained):
    make(full_sft=False, **REGION).run()
    trained.clear()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for change, words in CHANGES:
        with pytest.raises(CofituneError, match="begun with another base, other data or other settings") as caught:
            make(**{**REGION, **change}).run()
        assert words in str(caught.value) and trained == []
        assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_moved_data_and_settings_files_are_the_same_run_and_changed_ones_are_not(make, tiny_run, tmp_path, trained):
    prompts, importance = tmp_path / "prompts.txt", tmp_path / "importance.safetensors"
    prompts.write_text("What is a region?\nWhat is a cell?\n")
    make(preset="rank", folder="first", **REGION).run()
    (tmp_path / "first" / "importance.safetensors").rename(importance)

    def run():
        anchor = AnchorSettings(weight=1.0, rows=1, texts=4, tokens=4, prompts=str(prompts))
        return make(preset="rank", importance_file=str(importance), anchor=anchor, levels=LEVELS).run()

    first = run()
    trained.clear()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for key, path in [(key, Path(path)) for key, path in tiny_run.items() if key.startswith(("data.", "versatility."))]:
        tiny_run[key] = str(path.rename(elsewhere / f"{key}{path.suffix}"))
    prompts, importance = (path.rename(elsewhere / path.name) for path in (prompts, importance))
    again = run()
    assert trained == [] and again["methods"] == first["methods"]

    for file, key in ((prompts, r"anchor\.prompts"), (importance, r"importance\.file"),
                      (Path(tiny_run["data.train"]), r"task\.sha256\.train")):
        before = file.read_bytes()
        file.write_bytes(before + (b" " if file == importance else before[: before.index(b"\n") + 1]))
        with pytest.raises(CofituneError, match=rf"begun with .*the content of {key} has changed"):
            run()
        file.write_bytes(before)
    assert trained == []


def test_a_folder_of_another_base_is_refused(make, tiny_run, trained):
    make(full_sft=False, **REGION).run()
    make_tiny_model(seed=8).save_pretrained(tiny_run["model"])
    with pytest.raises(CofituneError, match=r"begun with another base, .* \(the content of base has changed"):
        make(**REGION).run()
    assert trained == ["ffn.up@2-3"]


def test_a_method_that_breaks_leaves_no_result_and_the_base_whole(make, tmp_path, monkeypatch, trained):
    pipeline = make(**REGION)
    monkeypatch.setattr(pipeline.bench, "score", lambda split, _score=pipeline.bench.score, **options: (
        1 / 0 if trained else _score(split, **options)))
    with pytest.raises(ZeroDivisionError):
        pipeline.run()
    assert [path.name for path in (tmp_path / "run" / "runs").iterdir()] == ["base-task.json"]
    assert tensor_digests(pipeline.bench.model) == pipeline.bench.digests
    report = make(**REGION).run()  # the lock is free and the base's row is kept
    assert names(report) == ["base", "CoFiTune coarse", "full SFT"]


def test_a_damaged_result_is_named(make, tmp_path):
    make(**REGION).run()
    (tmp_path / "run" / "runs" / "base-task.json").write_text("{")
    with pytest.raises(CofituneError, match=r"finished run .*base-task\.json cannot be read as JSON"):
        make(**REGION).run()


def test_a_merged_folder_that_was_tampered_with_fails_its_checks(make, tmp_path):
    """One number of a frozen tensor: the report must say so, and must not say that the folder is base + delta."""
    first = make(**REGION, preset="rank").run()
    assert [check["passed"] for check in first["checks"]] == [True, True, True]
    merged = tmp_path / "run" / "merged"
    tensors = load_file(merged / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "run" / "checks.json").unlink()
    frozen, equal, _ = make(**REGION, preset="rank").run()["checks"]
    assert not frozen["passed"] and "model.layers.0.mlp.up_proj.weight" in frozen["detail"]
    assert not equal["passed"]


def test_full_sft_may_be_left_out_and_asked_for_later(make, trained):
    without = make(full_sft=False, **REGION).run()
    assert names(without) == ["base", "CoFiTune coarse"] and trained == ["ffn.up@2-3"] and without["complete"]
    report = make(**REGION).run()
    assert names(report) == ["base", "CoFiTune coarse", "full SFT"] and trained == ["ffn.up@2-3", "full"]


def test_a_method_that_does_not_fit_is_a_failed_row_and_is_tried_again(make, tmp_path, monkeypatch):
    train = Workbench.train

    def too_large(self, region, *args, **watching):
        if region.is_full:
            raise CofituneError("Out of memory at step 1. Take a smaller batch.")
        return train(self, region, *args, **watching)

    monkeypatch.setattr(Workbench, "train", too_large)
    report = make(preset="rank", **REGION).run()
    full = report["methods"][-1]
    assert (full["name"], full["state"], full["why"]) == ("full SFT", "failed",
                                                          "Out of memory at step 1. Take a smaller batch.")
    assert [row["state"] for row in report["methods"]] == ["done", "done", "done", "failed"] and report["complete"]
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == report
    monkeypatch.setattr(Workbench, "train", train)
    again = make(preset="rank", **REGION).run()
    assert [row["state"] for row in again["methods"]] == ["done"] * 4
    assert again["methods"][:3] == report["methods"][:3]


@pytest.mark.parametrize("where", ["clone", "score"])
def test_too_little_memory_anywhere_in_a_method_is_a_failed_row(make, monkeypatch, where):
    in_full_sft, functions = [], {"clone": Workbench.trial, "score": Workbench.score}

    def trial(self, region):
        in_full_sft[:] = [region.is_full]
        if region.is_full and where == "clone":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return functions["clone"](self, region)

    def score(self, *args, **options):
        if in_full_sft == [True]:
            raise RuntimeError("CUDA error: out of memory")
        return functions["score"](self, *args, **options)

    monkeypatch.setattr(Workbench, "trial", trial)
    monkeypatch.setattr(Workbench, "score", score)
    pipeline = make(**REGION)
    report = pipeline.run()
    full = report["methods"][-1]
    assert (full["state"], report["complete"]) == ("failed", True) and full["why"].startswith("Out of memory before or")
    assert tensor_digests(pipeline.bench.model) == pipeline.bench.digests


def test_settings_that_change_nothing_and_those_of_full_sft_may_change(make, trained):
    first = make(**REGION).run()
    trained.clear()
    quiet = {**TRAINING, "logging_steps": 5, "report_to": "none", "dataloader_num_workers": 0}
    again = make(training=quiet, full_sft_training={"learning_rate": 1e-3}, **REGION).run()
    assert trained == ["full"] and again["methods"][1] == first["methods"][1]


def test_a_failed_check_is_made_again(make, monkeypatch):
    from cofitune_fast.pipeline import pipeline

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "check_delta", lambda *_: [{"name": "x", "passed": False, "detail": "y"}])
        assert [check["passed"] for check in make(preset="rank", **REGION).run()["checks"]] == [False]
    assert [check["passed"] for check in make(preset="rank", **REGION).run()["checks"]] == [True] * 3


def test_the_report_is_there_after_each_method(make, tmp_path, monkeypatch):
    seen, train = [], Workbench.train

    def look(self, region, *args, **watching):
        path = tmp_path / "run" / "report.json"
        content = json.loads(path.read_text()) if path.is_file() else {"methods": [], "complete": None}
        seen.append(([row["name"] for row in content["methods"]], content["complete"]))
        return train(self, region, *args, **watching)

    monkeypatch.setattr(Workbench, "train", look)
    make(preset="rank", **REGION).run()
    assert seen == [([], None), (["base", "CoFiTune coarse"], False),
                    (["base", "CoFiTune coarse", "CoFiTune fine"], False)]


def test_the_checks_hold_under_the_load_options_of_the_run(make, monkeypatch):
    """With another attention than the default the merged model is scored by that attention too."""
    plain = make(**REGION).bench
    monkeypatch.setattr("test_pipeline.load_model", partial(load_model, attn_implementation="eager"))
    pipeline = make(preset="rank", **REGION)
    assert pipeline.bench.score("test").to_dict(items=True) != plain.score("test").to_dict(items=True)
    assert [check["passed"] for check in pipeline.run()["checks"]] == [True, True, True]


def test_evaluations_belong_to_the_final_runs_and_not_to_the_nodes(make, tmp_path):
    training = {**TRAINING, "max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    report = make(full_sft=False, levels=LEVELS, training=training).run()
    coarse = report["methods"][1]["run"]
    assert coarse["eval_loss"] > 0 and 1 <= coarse["best_step"] <= 3
    assert not (tmp_path / "run" / "nodes" / "CoFiTune-coarse").exists()
