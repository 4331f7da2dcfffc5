"""`cofitune compare` with compare.methods, from the YAML to comparison.json, and what it refuses."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec

import pytest
import yaml
from tiny import write_jsonl

from cofitune_fast.search.executors import ray_cluster


@pytest.fixture
def config(tiny_run, tmp_path):
    """Writes a configuration with the section compare given; returns its path."""
    def write(**compare):
        values = {"model": tiny_run["model"], "output": tiny_run["output"], "region": "ffn.up@2-3",
                  "data": {part: tiny_run[f"data.{part}"] for part in ("train", "valid", "test")},
                  "versatility": {part: tiny_run[f"versatility.{part}"] for part in ("valid", "test")},
                  "training": {"per_device_train_batch_size": 8, "warmup_steps": 0}, "compare": compare}
        path = tmp_path / "comparison.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def test_from_yaml_to_comparison_and_again(command_line, config, tiny_run, tmp_path):
    pytest.importorskip("peft")
    data = {part: tiny_run[f"data.{part}"] for part in ("train", "valid", "test")}
    path = config(methods=["region", {"name": "small-lora", "method": "lora", "lora": {"rank": 2}}], seeds=[1],
                  learning_rates={"region": [0.01], "small-lora": [0.01]},
                  tasks={"letters": data, "few": {**data, "limit": 8}})
    status, out, err = command_line("compare", "-c", path, "--dry-run")
    assert status == 0 and "4 runs, about as long as" in out and not (tmp_path / "run").exists()
    status, out, err = command_line("compare", "-c", path, "--so-far", "--json")
    assert status == 0 and {run["state"] for run in json.loads(out)["runs"]} == {"missing"}, err
    status, out, err = command_line("compare", "-c", path, "--json")
    assert status == 0, err
    content = json.loads(out)
    assert content == json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert {(run["method"], run["task"], run["state"]) for run in content["runs"]} == {
        (method, task, "done") for method in ("region", "small-lora") for task in ("letters", "few")}
    assert set(content["base_scores"]) == {"letters", "few"}
    few = [run for run in content["runs"] if run["task"] == "few"]
    assert all(run["cost"]["tokens"] < other["cost"]["tokens"] for run in few for other in content["runs"]
               if other["task"] != "few" and other["method"] == run["method"])
    assert "run 4 of 4: " in err
    next((tmp_path / "run" / "runs").glob("small-lora-few-*.json")).unlink()
    status, out, err = command_line("compare", "-c", path, "--dry-run")
    assert status == 0 and "4 runs, of which 3 are done; the others take about as long as" in out
    assert out.count("seed 1  done\n") == 3 and out.count(" full SFT\n") == 1
    status, out, err = command_line("compare", "-c", path)
    assert status == 0 and "run 4 of 4" in err and "run 3 of 4" not in err
    status, out, err = command_line("compare", "-c", path)
    assert status == 0 and " of 4: " not in err
    assert "small-lora" in out and "comparison.html" in out
    assert "Flips" in out
    assert all(f"{entry['task']}: {entry['sentence']}" in " ".join(out.split()) for entry in content["resolution"])
    status, out, err = command_line("compare", "-c", path, "--dry-run", "--json")
    plan = json.loads(out)
    assert status == 0 and len(plan["runs"]) == 4 and all(run["done"] for run in plan["runs"])
    assert [(entry["task"], entry["figure"]) for entry in plan["resolution"]] == [
        (task, figure) for task in ("few", "letters") for figure in ("vers", "uni")]
    assert (tmp_path / "run" / "comparison.html").is_file()


@pytest.mark.parametrize("executor", ["processes", "ray"])
def test_two_workers_make_the_runs_that_one_process_makes(command_line, config, tmp_path, executor, monkeypatch):
    if executor == "ray":
        if find_spec("ray") is None:
            pytest.skip("ray is not installed")
        ray = ray_cluster._ray()  # after a plain import Ray would print to stdout in later tests of this process
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    rates = {"full-sft": [0.001], "wise-ft": [0.001], "region": [0.01]}
    path = config(methods=["full-sft", {"method": "wise-ft", "alphas": [0.5]}, "region"], seeds=[1, 2],
                  learning_rates=rates, workers=2)
    outputs = [command_line("compare", "-c", path, "--json", "--compare.executor", kind, "--output", tmp_path / kind)
               for kind in ("in-process", executor)]
    if executor == "ray":
        ray.shutdown()
    assert [status for status, _, _ in outputs] == [0, 0], outputs[1][2]
    alone, together = ([(run["id"], run["state"], run["valid"], run["test"]) for run in json.loads(out)["runs"]]
                       for _, out, _ in outputs)
    assert together == alone and len(alone) == 6


def test_the_forecast_counts_the_texts_that_a_file_gives(command_line, config, tmp_path):
    """In full SFTs, of which an anchor's texts are a part: long general rows are more work than short ones."""
    found = []
    for name, response in (("short", "a"), ("long", "a" * 200)):
        general = write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": "p", "completion": response}] * 3)
        entry = {"method": "anchor-general-texts", "region": "full", "anchor": {"texts": 4, "tokens": 500}}
        path = config(methods=[entry], seeds=[1], learning_rates={"anchor-general-texts": [0.01]}, general=str(general))
        status, out, err = command_line("compare", "-c", path, "--dry-run")
        assert status == 0, err
        found.append(float(re.search(r"about as long as ([\d.]+)", out)[1]))
    assert found[1] > 1.5 * found[0]


def test_a_folder_of_other_data_is_refused(command_line, config, tmp_path):
    path = config(methods=["region"], seeds=[1], learning_rates={"region": [0.01]})
    assert command_line("compare", "-c", path)[0] == 0
    write_jsonl(tmp_path / "valid.jsonl", [{"prompt": "p", "completion": "c"}] * 3)
    status, _, err = command_line("compare", "-c", path)
    assert status == 2 and "was begun with another base, other data" in err and "task.sha256.valid has changed" in err


@pytest.mark.parametrize(("compare", "options", "sentence"), [
    ({"methods": ["lroa"]}, [], "unknown method 'lroa'; did you mean lora?"),
    ({"methods": ["region"], "seeds": [1, 1]}, [], "each seed may stand there once"),
    ({"methods": ["region"], "tasks": {"e2e": {"trian": "x"}}}, [],
     "Unknown key trian in the task e2e of compare.tasks; did you mean train?"),
    ({"methods": ["region"], "tasks": {"e2e": {"train": "x"}}}, [], "The task e2e of compare.tasks has no valid data"),
    ({"methods": ["region"], "tasks": {"e2e": {"train": "x", "valid": "x", "test": "x", "limit": "many"}}}, [],
     "limit in the task e2e of compare.tasks is wrong"),
    ({"methods": ["region"], "tasks": {"a/b": {}}}, [], "has a name that cannot be a file's"),
    ({"methods": ["anchor-general-texts"]}, [],
     "The method anchor-general-texts: A method needs general rows; set compare.general to a data file."),
    ({"methods": ["region"]}, ["--data.train", "gone.jsonl"], "The task task: The data file"),
    ({"methods": ["region"]}, ["--model.quantize", "nf4"], "cannot be quantised"),
    ({"method": ["region"]}, [], "Unknown key compare.method"),
    ({}, ["--dry-run"], "--dry-run and --so-far are for the runs of compare.methods, and there are none"),
])
def test_what_is_wrong_is_said_before_anything_is_made(command_line, config, tmp_path, compare, options, sentence):
    status, _, err = command_line("compare", "-c", config(**compare), *options)
    assert status == 2 and sentence in err
    assert not (tmp_path / "run" / "runs").exists()
