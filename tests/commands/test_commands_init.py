"""`cofitune init` writes a run.yaml that is the run: it loads, trains unchanged, fits the card, and says why."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import write_jsonl

from cofitune_fast.commands.init import REGIONS, memory_of
from cofitune_fast.commands.plan import NothingFits, plan_within
from cofitune_fast.commands.run_yaml import Entry, as_yaml, remark, written
from cofitune_fast.config import load_config
from cofitune_fast.environment import environment
from cofitune_fast.planning.fit import Choice, Fit
from cofitune_fast.yaml_text import parse_yaml


def test_the_file_trains_unchanged_and_says_why(command_line, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COFITUNE_CACHE", str(tmp_path / "cache"))
    train = Path(tiny_run["data.train"])
    rows = [{"prompt": f"say {number}", "completion": f"{number}"} for number in range(40)]
    write_jsonl(train, [*rows, {"prompt": "no answer"}])
    given = ("--model", tiny_run["model"], "--data", train.name, "--data.valid", "valid.jsonl", "--card", "24GiB",
             "--anchor.texts", "8", "--anchor.tokens=6", "--training.max_steps", "2")
    status, out, err = command_line("init", *given)
    assert status == 0 and out.splitlines()[-1] == "Next: cofitune train --config run.yaml", err
    text = Path("run.yaml").read_text()
    for words in ("1 of 41 rows cannot be used", "no row is cut", "of 24.00 GiB, given by --card", "suite/valid",
                  "# test: data/test.jsonl"):
        assert words in text, words
    for line in text.splitlines():  # beside each value, or above it
        assert re.fullmatch(r"\s*#.*|\s*[\w.]+:|\s*\S+: .* # .+||  path: \S+", line), line
    config = load_config("run.yaml")
    assert (config.data.max_length, config.data.on_bad_row, config.storage) == (64, "skip", "fp32")
    assert config.training == {"per_device_train_batch_size": 8, "eval_strategy": "epoch", "max_steps": 2}
    assert config.anchor.texts == 8 and config.region == "ffn@40%-75%"

    status, out, err = command_line("train", "--config", "run.yaml", "--json")
    assert status == 0 and json.loads(out)["steps"] == 2 and Path("runs/first/delta").is_dir(), err

    status, out, err = command_line("init", *given)
    assert status == 2 and "run.yaml is there already; give --overwrite" in err
    assert Path("run.yaml").read_text() == text
    whole = [f"--{key}={value}" for key, value in tiny_run.items() if key.startswith(("model", "data", "versatility"))]
    status, out, err = command_line("init", *whole, "--overwrite", "--data.on_bad_row", "skip", "--json")
    content = json.loads(out)
    assert content["next"] == "cofitune run --config run.yaml" and "suite/valid" not in Path("run.yaml").read_text()
    assert content["settings"]["versatility.test"] == tiny_run["versatility.test"]
    assert "MiB of" in str(content["reasons"])


def test_what_does_not_fit_gets_the_settings_that_do(command_line, tiny_run, tmp_path, monkeypatch):
    def fit(planner, wanted, limit, rates):
        assert limit == int(0.9 * 1024**2)
        used = replace(wanted, accumulation=4, storage="bf16_sr", quantize="int8", optimizer_states="host",
                       gradient_checkpointing=True)
        return Fit(Choice(planner.plan(used), None, ("quantize int8",)), None, None)

    monkeypatch.setattr("cofitune_fast.commands.plan.fit", fit)
    monkeypatch.setattr("cofitune_fast.commands.plan._rates", lambda *_: None)
    status, _, err = command_line("init", "--model", tiny_run["model"], "--data.train", tiny_run["data.train"],
                                  "--card", "1MiB", "--output", tmp_path / "run.yaml")
    assert status == 0, err
    settings = load_config(tmp_path / "run.yaml")
    assert (settings.model.quantize, settings.storage, settings.memory.optimizer_states) == ("int8", "bf16_sr", "host")
    assert settings.training == {"num_train_epochs": 2, "per_device_train_batch_size": 2,
                                 "gradient_checkpointing": True, "gradient_accumulation_steps": 4}
    assert "pip install 'cofitune-fast[quantize]'" in (tmp_path / "run.yaml").read_text()


@pytest.mark.parametrize(("fits", "chosen"), [
    (lambda region, length: region != REGIONS[0], (REGIONS[1], 640)),
    (lambda region, length: length < 640, (REGIONS[0], 384)),
    (lambda region, length: region == REGIONS[-1] and length == 128, (REGIONS[-1], 128)),
    (lambda region, length: False, None),
])
def test_smaller_regions_are_tried_before_shorter_rows(command_line, tiny_run, tmp_path, monkeypatch, fits, chosen):
    lengths = [100] * 75 + [340] * 20 + [600] * 5
    rows = write_jsonl(tmp_path / "rows.jsonl", [
        {"prompt": "say", "completion": "a" * (length - 30)} for length in lengths])
    config = json.loads((Path(tiny_run["model"]) / "config.json").read_text())
    (Path(tiny_run["model"]) / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))

    def plan(settings, limit):
        if not fits(settings.region, settings.data.max_length):
            raise NothingFits(f"Nothing of {settings.region} fits.")
        small = settings.model_copy(deep=True)
        small.data.max_length = 16
        return plan_within(small, 2**40)

    monkeypatch.setattr("cofitune_fast.commands.init.plan_within", plan)
    status, out, err = command_line("init", "--model", tiny_run["model"], "--data.train", rows, "--output",
                                    tmp_path / "run.yaml", "--json")
    if chosen is None:
        assert status == 2 and f"Nothing of {REGIONS[0]} fits." in err
        return
    settings = json.loads(out)["settings"]
    assert (settings["region"], settings["data.max_length"]) == chosen, err


@pytest.mark.parametrize(("argv", "words"), [
    (["--data.train", "TRAIN"], "This command needs the model: give --model FOLDER"),
    (["--model", "MODEL"], "This command needs the data, which decide the lengths: give --data.train FILE"),
    (["--model", "MODEL", "--data.train", "BAD"], "9 of 16 rows"),
    (["--model", "MODEL", "--data.train", "TRAIN", "--card", "big"], "--card is 'big'; write a size such as"),
])
def test_what_is_missing_is_one_sentence(command_line, tiny_run, tmp_path, argv, words):
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "a", "completion": "b"}] * 7 + [{"prompt": "a"}] * 9)
    names = {"TRAIN": tiny_run["data.train"], "MODEL": tiny_run["model"], "BAD": str(bad)}
    status, out, err = command_line("init", *(names.get(one, one) for one in argv), "--output", tmp_path / "run.yaml")
    assert status == 2 and out == "" and words in err and not (tmp_path / "run.yaml").exists()


def test_the_memory_is_that_of_the_card_else_of_the_gpu_else_of_the_host(monkeypatch):
    class Gpu:
        total_memory = 10 * 2**30

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: Gpu)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "A card")
    assert memory_of(None) == (9 * 2**30, "10.00 GiB, A card", False)
    assert memory_of("20GiB") == (18 * 2**30, "20.00 GiB, given by --card", False)
    host = memory_of(None, "cpu")
    assert 0 < host.size < environment()["memory_bytes"] and host.whose.endswith("GiB, available here") and host.host


@pytest.mark.parametrize("value", ["plain/path.jsonl", "a: b", "yes", "null", "2024", "#x", "ffn@40%-75%", "é 漢\t\"'",
                                   "~/x", "- a", "*a", 1e-5, 12, True, None, [1, "a: b"], {"a": "off"}])
def test_a_value_is_read_back_as_it_was_written(value):
    text = written([remark("first\nsecond"), Entry("data.train", value, "why"), Entry("data.off", 1, "later", off=True),
                    Entry("output", value, "a reason " * 20)])
    assert parse_yaml(text) == {"data": {"train": value}, "output": value}
    assert text.startswith("# first\n# second\ndata:\n") and as_yaml(value) in text
