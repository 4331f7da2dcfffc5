"""Every command on a tiny model, as a user types it; and one sentence with status 2 for bad input."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cofitune_fast.importance import Importance
from cofitune_fast.models import load_model
from cofitune_fast.ops._registry import OPERATIONS
from cofitune_fast.regions import DEFAULT_REGION, Region, read_delta

pytest.importorskip("matplotlib")


def arguments(settings, *extra, **overrides):
    pairs = {**settings, **{key.replace("__", "."): value for key, value in overrides.items()}}
    return [*extra, *(part for key, value in pairs.items() for part in (f"--{key}", str(value)))]


@pytest.fixture
def cofitune(command_line):
    return command_line


def test_env_tells_backends_and_versions(cofitune):
    status, out, _ = cofitune("env", "--json")
    content = json.loads(out)
    assert status == 0
    assert set(content["ops"]) == set(OPERATIONS)
    assert content["environment"]["torch"] == __import__("torch").__version__


def test_env_says_what_is_missing_and_what_that_costs(cofitune, monkeypatch):
    from cofitune_fast.ops import native

    monkeypatch.setattr(native, "load_error", lambda: "the native extension is not built")
    status, out, _ = cofitune("env")
    assert status == 0 and "the native extension is not built" in out
    assert native.COST_WITHOUT in " ".join(out.split())


def test_train_takes_other_texts_and_losses_of_the_anchor(cofitune, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setenv("COFITUNE_CACHE", str(tmp_path / "cache"))
    changes = {"anchor.source": "rows", "anchor.prompts": tiny_run["data.valid"], "anchor.loss": "reverse_kl"}
    status, out, err = cofitune("train", *arguments(tiny_run, **changes), "--json")
    assert status == 0 and json.loads(out)["anchor_kl"] > 0, err
    assert "8 texts of a data file, measured now unless they are in the cache" in " ".join(err.split())
    status, _, err = cofitune("train", *arguments(tiny_run, **{"anchor.source": "rows"}), "--overwrite")
    assert status == 2 and "anchor.prompts must name a data file" in err
    status, _, err = cofitune("train", *arguments(tiny_run, **{"anchor.loss": "jsd"}))
    assert status == 2 and "anchor.loss" in err and "choose one of kl, reverse_kl, ce" in err


def test_train_evaluate_and_merge_one_region(cofitune, tiny_run, tmp_path):
    region = {"region": "ffn@50%-100%"}
    status, out, err = cofitune("train", *arguments(tiny_run, **region), "--json")
    result = json.loads(out)
    assert status == 0 and result["trained_parameters"] == 2 * 3 * 32 * 48, err
    delta = Path(tiny_run["output"]) / "delta"
    settings = json.loads((delta / "cofitune.json").read_text())["settings"]
    assert settings["mask"] == {"preset": "none", "mode": "update"} and settings["anchor"]["weight"] == 1.0

    base = json.loads(cofitune("evaluate", *arguments(tiny_run), "--json")[1])
    tuned = json.loads(cofitune("evaluate", *arguments(tiny_run, delta=delta), "--json")[1])
    assert tuned["spec"] > base["spec"] and "drift" not in base
    drifts = [tuned.pop(name) for name in ("drift", "task_drift")]
    lines = cofitune("evaluate", *arguments(tiny_run, delta=delta))[1].splitlines()
    for drift, words in zip(drifts, (["drift", "from", "the", "base"], ["drift", "from", "the", "base,", "on"]),
                            strict=True):
        assert drift["metric"] == "kl" and drift["n"] == 4 and drift["value"] > 0
        assert any(line.split()[: len(words)] == words and f"kl {drift['value']:.3f}" in line
                   for line in lines), lines
    assert tuned["resolution"][0]["sentence"] in lines
    assert tuned["resolution"][0]["smallest"] == pytest.approx(1.959964 * 2**0.5 * tuned["vers_se"], rel=1e-6)
    _against_its_base(cofitune, tiny_run, delta, base, tuned)

    out_folder = tmp_path / "merged"
    status, _, err = cofitune("merge", "--model", tiny_run["model"], "--delta", delta, "--output", out_folder)
    assert status == 0, err
    merged = json.loads(cofitune("evaluate", *arguments({**tiny_run, "model": out_folder}), "--json")[1])
    assert merged == tuned

    assert cofitune("train", *arguments(tiny_run, **region), "--overwrite")[0] == 0


def _against_its_base(cofitune, tiny_run, delta, base, tuned):
    status, out, err = cofitune("evaluate", *arguments(tiny_run, delta=delta), "--against-base", "--json")
    assert status == 0, err
    against = json.loads(out)["against_base"]
    for figure, difference in against["differences"].items():
        assert difference["value"] == pytest.approx(tuned[figure] - base[figure], abs=1e-12)
        assert difference["se"] < 2**0.5 * max(base[f"{figure}_se"], tuned[f"{figure}_se"]) + 1e-9
    for group in ("knowledge", "reasoning"):
        (before,), (after,) = (scores["tasks"][group].values() for scores in (base, tuned))
        flips = against["flips"][group]
        assert flips["items"] == before["n"]
        assert flips["wrong_to_right"] - flips["right_to_wrong"] == round(
            before["n"] * (after["metrics"]["accuracy"] - before["metrics"]["accuracy"]))
    lines = cofitune("evaluate", *arguments(tiny_run, delta=delta), "--against-base")[1].splitlines()
    flips = against["flips"]["vers"]
    (row,) = [line for line in lines if line.split()[:1] == ["vers"]]
    assert row.split()[-2:] == [str(flips["right_to_wrong"]), str(flips["wrong_to_right"])]
    status, _, err = cofitune("evaluate", *arguments(tiny_run), "--against-base")
    assert status == 2 and "--against-base compares a delta with its base" in err


def test_without_region_and_rate_the_default_ones_are_taken(cofitune, tiny_run):
    del tiny_run["training.learning_rate"]
    status, out, err = cofitune("train", *arguments(tiny_run))
    assert status == 0 and DEFAULT_REGION in out, err
    assert read_delta(Path(tiny_run["output"]) / "delta").settings["training"]["learning_rate"] == 4e-4
    assert read_delta(Path(tiny_run["output"]) / "delta").region == DEFAULT_REGION


@pytest.mark.parametrize("command", [["train"], ["search", "--dry-run"]])
def test_a_learning_rate_that_is_none_is_one_sentence(cofitune, tiny_run, command):
    status, _, err = cofitune(*command, *arguments(tiny_run, training__learning_rate="fast"))
    assert status != 0 and "training.learning_rate is 'fast'; it must be a number." in err
    assert "Traceback" not in err


def test_importance_plan_and_dry_run(cofitune, tiny_run):
    status, out, _ = cofitune("importance", *arguments(tiny_run), "--json")
    content = json.loads(out)
    assert status == 0 and content["samples"] == 8 and Path(content["path"]).is_file()
    status, out, _ = cofitune("plan", "--model", tiny_run["model"], "--region", "ffn.up@50%-100%",
                              "--data.max_length", "16", "--json")
    plan = json.loads(out)
    assert status == 0 and plan["trained_parameters"] == 2 * 32 * 48
    assert plan["peak"] == sum(plan["parts"].values()) and plan["time"]["total"] > 0
    assert plan["parts"]["optimizer"] >= 8 * plan["trained_parameters"]
    status, out, _ = cofitune("search", "--dry-run", *arguments(tiny_run), "--search.space", "paper", "--json")
    content = json.loads(out)
    assert status == 0 and [node["level"] for node in content["nodes"]].count(0) == 6
    assert content["totals"]["nodes"] == len(content["nodes"]) > 20 and content["totals"]["full_sft_paper"] > 0
    status, out, _ = cofitune("search", "--dry-run", *arguments(tiny_run), "--budget-time", "1.5")
    assert status == 0 and "ffn@40%-75%" in out and "left out: it needs" in " ".join(out.split())


SMALL_SPACE = "[{layers: [0-1, 2-3, 0-3], roles: [ffn.up, ffn.down]}]"


def last_line(out):
    return json.loads(out.splitlines()[-1])


def test_a_search_killed_in_the_middle_resumes_to_the_same_choice(cofitune, tiny_run, tmp_path):
    tiny_run["search.space"] = SMALL_SPACE
    whole = last_line(cofitune("search", *arguments(tiny_run, output=tmp_path / "whole"), "--json")[1])
    argv = [sys.executable, "-m", "cofitune_fast.cli", "search", *arguments(tiny_run)]
    journal = Path(tiny_run["output"]) / "journal.jsonl"
    root = Path(__file__).parents[2]
    process = subprocess.Popen(argv, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        if journal.is_file() and journal.read_text().count('"kind": "rung"') >= 3:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = journal.read_bytes().splitlines(keepends=True)
    finished = [line for line in lines if line.endswith(b"\n")]
    assert 4 <= len(finished) < 2 + sum(len(node["rungs"]) for node in whole["nodes"])
    resumed = last_line(cofitune("search", *arguments(tiny_run), "--json")[1])
    assert journal.read_bytes().splitlines(keepends=True)[: len(finished)] == finished
    for key in ("region", "spec", "vers", "uni", "signal"):
        assert [node.get(key) for node in resumed["nodes"]] == [node.get(key) for node in whole["nodes"]]
    assert resumed["chosen"] == whole["chosen"]


@pytest.mark.parametrize("change, words", [
    ({"region": "ffn.sideways@all"}, "Unknown role 'ffn.sideways'"),
    ({"region": "ffn@10%-20%"}, "selects no layer"),
    ({"region": "ffn@9"}, "names layer 9"),
    ({"region": "ffn@all", "data.train": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
    ({"region": "ffn@all", "training.learning_rate": -1}, "must be a number above 0"),
    ({"region": "ffn@all", "data.max_lenght": 3}, "Unknown key data.max_lenght in the command line; did you mean "
                                                  "data.max_length?"),
    ({"region": "ffn@all", "data.max_length": "long"}, "data.max_length in the command line is wrong"),
    ({"region": "ffn@all", "mask.preset": "papper"}, "papper"),
    ({"region": "ffn@all", "importance.file": "i.safetensors"}, "mask.preset is none, so that no mask would be made"),
    ({"region": "ffn@all", "model": "./nowhere"}, "No model at ./nowhere"),
])
def test_bad_input_is_one_sentence_and_status_2(cofitune, tiny_run, change, words):
    status, out, err = cofitune("train", *arguments({**tiny_run, **change}))
    assert status == 2 and out == ""
    assert words in err and err.count("cofitune: ") == 1


def test_a_missing_option_value_and_a_missing_file(cofitune, tmp_path):
    assert cofitune("train", "--region")[2] == "cofitune: The option --region has no value; write --region VALUE."
    assert "No configuration at" in cofitune("train", "--config", tmp_path / "no.yaml")[2]
    (tmp_path / "bad.yaml").write_text("model: [")
    assert "is not valid YAML at line" in cofitune("train", "--config", tmp_path / "bad.yaml")[2]
    (tmp_path / "key.yaml").write_text("modle: x")
    assert "Unknown key modle in" in cofitune("train", "--config", tmp_path / "key.yaml")[2]


def test_a_mask_over_the_whole_model(cofitune, tiny_run):
    """V-SoftMask, and in one step of update mode: a unit moves by its factor of what it moves without a mask."""
    training = {"training.max_steps": 1, "training.lr_scheduler_type": "constant", "training.warmup_steps": 0,
                "training.weight_decay": 0}
    moved, name, base = {}, "model.layers.2.mlp.up_proj.weight", load_model(tiny_run["model"]).model
    for preset in ("rank", "none"):
        output = Path(tiny_run["output"]) / preset
        status, _, err = cofitune("train", *arguments({**tiny_run, **training, "output": output}, region="full",
                                                      mask=preset, storage="fp32"))
        assert status == 0, err
        moved[preset] = load_file(output / "delta" / "delta.safetensors")[name] - base.get_parameter(name).detach()
    importance = Importance.load(Path(tiny_run["output"]) / "rank" / "importance.safetensors")
    factors = importance.masks(base, Region.parse("ffn.up@2"), preset="rank")[name]
    torch.testing.assert_close(moved["rank"], factors * moved["none"], rtol=1e-3, atol=1e-6)


def test_a_delta_of_another_base(cofitune, tiny_run, tmp_path):
    from tiny import make_tiny_model

    assert cofitune("train", *arguments(tiny_run, region="ffn@3", mask="rank"))[0] == 0
    other = tmp_path / "other"
    shutil.copytree(tiny_run["model"], other)
    make_tiny_model(seed=5).save_pretrained(other)
    delta = Path(tiny_run["output"]) / "delta"
    status, _, err = cofitune("evaluate", *arguments({**tiny_run, "model": other}, delta=delta))
    assert status == 2 and "base" in err
    status, _, err = cofitune("merge", "--model", other, "--delta", delta, "--output", tmp_path / "out")
    assert status == 2 and not (tmp_path / "out").exists()
    importance = Path(tiny_run["output"]) / "importance.safetensors"
    status, _, err = cofitune("train", *arguments(
        {**tiny_run, "model": other, "output": tmp_path / "b"}, region="ffn@3", mask="rank",
        importance__file=importance))
    assert status == 2 and str(tiny_run["model"]) in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_that_cannot_be_written(cofitune, tiny_run, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    status, _, err = cofitune("train", *arguments(tiny_run, region="ffn@3", output=tmp_path / "locked" / "x"))
    assert status == 2 and "Cannot write to the folder" in err


def test_an_output_that_is_a_file(cofitune, tiny_run, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = cofitune("train", *arguments(tiny_run, region="ffn@3", output=tmp_path / "file"))
    assert status == 2 and "Cannot write to the folder" in err


def test_a_missing_versatility_group(cofitune, tiny_run, tmp_path):
    shutil.rmtree(tmp_path / "valid" / "reasoning")
    status, _, err = cofitune("search", *arguments(tiny_run))
    assert status == 2 and "reasoning" in err


def test_a_loss_that_is_not_finite_names_the_step_and_the_delta_that_is_kept(cofitune, tiny_run, monkeypatch):
    import torch

    from cofitune_fast.training import trainer

    true_losses, calls = trainer.response_losses, []

    def poisoned(*args, **kwargs):
        calls.append(1)
        return [loss * (float("nan") if len(calls) == 2 else 1) for loss in true_losses(*args, **kwargs)]

    monkeypatch.setattr(trainer, "response_losses", poisoned)
    status, _, err = cofitune("train", *arguments(tiny_run, region="ffn@3", mask="none"))
    assert status == 2 and "The loss is nan at step 2" in err and "are kept in" in err
    kept = load_file(Path(tiny_run["output"]) / "delta" / "delta.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_training_with_evaluations_shows_them_and_ends_with_the_best_weights(cofitune, tiny_run):
    options = {"training.eval_strategy": "steps", "training.eval_steps": 1, "training.num_train_epochs": 2,
               "training.load_best_model_at_end": "true", "training.early_stopping_patience": 3}
    status, out, err = cofitune("train", *arguments({**tiny_run, **options}, "--json", region="ffn@3", mask="none"))
    result = json.loads(out)
    assert status == 0 and err.count("loss on the validation rows") == result["steps"] == 4
    assert 1 <= result["best_step"] <= 4 and f"loss on the validation rows {result['eval_loss']:.4g}" in err


@pytest.mark.parametrize("command", ["train", "run", "search", "compare"])
def test_training_arguments_without_effect_are_refused_before_a_model_is_loaded(
    cofitune, tiny_run, monkeypatch, command
):
    monkeypatch.setattr("cofitune_fast.commands.setup.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    status, _, err = cofitune(command, *arguments({**tiny_run, "training.optim": "adafactor"}))
    assert status == 2 and "training.optim is 'adafactor', which is not taken here" in err
    assert not (Path(tiny_run["output"]) / "delta").exists()


def test_two_runs_in_one_folder(cofitune, tiny_run):
    from filelock import FileLock

    folder = Path(tiny_run["output"])
    folder.mkdir()
    with FileLock(folder / "train.lock"):
        status, _, err = cofitune("train", *arguments(tiny_run, region="ffn@3"))
    assert status == 2 and "Another run is training in" in err


def test_ctrl_c_says_how_to_go_on(cofitune, monkeypatch, tiny_run):
    from cofitune_fast.trials import Workbench

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Workbench, "train", interrupt)
    status, _, err = cofitune("search", *arguments(tiny_run))
    assert status == 130 and "the same command goes on from there" in err


@pytest.mark.parametrize(("change", "words"), [
    ({"search.space": "[]"}, "The search space has no level"),
    ({"search.space": "papr"}, "Unknown search space 'papr'; did you mean paper?"),
    ({"search.space": "[{layers: [8-9], roles: [ffn]}]"}, "names layer 9, but this model has the layers 0-3"),
    ({"search.space": "[{layers: [all], roles: [ffn.sideways]}]"}, "roles has 'ffn.sideways'"),
    ({"search.strategy": "gready"}, "Unknown search strategy 'gready'; did you mean greedy?"),
    ({"search.rungs": "[0.5, 0.25]"}, "search.rungs is [0.5, 0.25]; give rising fractions"),
    ({"search.rungs": "[1]"}, "A race needs a rung below 1"),
    ({"search.budget": "2 weeks"}, "search.budget is '2 weeks'; write an amount above 0"),
    ({"search.rate_factors": "[0]"}, "search.rate_factors must be a list of numbers above 0"),
    ({"search.keep": "0"}, "search.keep is 0.0; it must be above 0"),
    ({"search.executor": "processes"}, "say how many workers share the processors"),
    ({"search.ray_address": "auto"}, "search.ray_address is given, but search.executor is not ray"),
    ({"search.executor": "ray", "search.ray_address": "nowhere"}, "is neither auto nor host:port"),
    ({"data.valid": "nothing.jsonl"}, "nothing.jsonl does not exist"),
])
def test_a_search_that_cannot_be_is_refused_in_a_sentence(cofitune, tiny_run, change, words):
    if change.get("search.executor") == "processes" and torch.cuda.is_available():
        pytest.skip("there is a GPU for each worker")
    if change.get("search.executor") == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")  # it is not imported here, for it reads its settings when it is
    status, out, err = cofitune("search", *arguments({**tiny_run, **change}))
    assert status == 2 and words in err and "Traceback" not in err and out == ""
    assert not (Path(tiny_run["output"]) / "nodes").exists()


@pytest.mark.parametrize("options", [["search"], ["search", "--dry-run"], ["run"]])
def test_the_numbers_of_a_search_are_checked_before_the_model_is_looked_for(cofitune, tiny_run, options):
    status, _, err = cofitune(*options, *arguments({**tiny_run, "model": "nowhere", "search.confidence": 0.1}))
    assert status == 2 and "search.confidence is 0.1; it must be at least 0.5" in err
    assert not Path(tiny_run["output"]).exists()


def test_a_search_without_a_validation_part_or_a_group(cofitune, tiny_run):
    settings = {key: value for key, value in tiny_run.items() if key != "data.valid"}
    status, _, err = cofitune("search", *arguments(settings))
    assert status == 2 and "No valid data: set data.valid" in err
    shutil.rmtree(Path(tiny_run["versatility.valid"]) / "reasoning")
    status, _, err = cofitune("search", *arguments(tiny_run))
    assert status == 2 and "no data for the group reasoning" in err


def test_a_search_reports_by_itself(cofitune, tiny_run):
    tiny_run["search.space"] = SMALL_SPACE
    status, out, _ = cofitune("search", *arguments(tiny_run), "--training.max_steps", 2)
    assert status == 0 and "cofitune report" in out
    status, out, _ = cofitune("report", tiny_run["output"])
    page = Path(tiny_run["output"]) / "report.html"
    assert status == 0 and page.is_file() and "The search chose" in page.read_text()
    content = json.loads((Path(tiny_run["output"]) / "search.json").read_text())
    assert content["search"]["test"]["chosen"]["uni"] > 0 and content["methods"] == []
