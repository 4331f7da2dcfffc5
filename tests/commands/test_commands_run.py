"""`cofitune run`: the whole job from a YAML, its status, and the way to it by `compare` without methods."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cofitune_fast.errors import CofituneError
from cofitune_fast.trials import Workbench

pytest.importorskip("matplotlib")


@pytest.fixture
def cofitune(command_line):
    return command_line


def arguments(settings, **more):
    return [part for key, value in {**settings, **more}.items() for part in (f"--{key}", str(value))]


def test_from_yaml_to_report_and_again(cofitune, tiny_run, tmp_path):
    output = Path(tiny_run["output"])
    values = {}
    tiny_run["search.budget_time"] = 2.0  # a tiny layer is little beside the texts of the anchor
    tiny_run["search.space"] = [{"layers": ["0-1", "2-3"], "roles": ["ffn.up", "ffn.down"]}, {"layers": "halves"}]
    for key, value in tiny_run.items():
        section, _, name = key.rpartition(".")
        values.setdefault(section, {})[name] = value if section else None
    flat = {key: tiny_run[key] for key in ("model", "output")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**flat, **{k: v for k, v in values.items() if k}}))
    status, out, err = cofitune("run", "--config", tmp_path / "run.yaml", "--json")
    assert status == 0, err
    report = json.loads(out)
    assert [row["name"] for row in report["methods"]] == ["base", "CoFiTune coarse", "CoFiTune fine", "full SFT"]
    assert all(check["passed"] for check in report["checks"]) and len(report["checks"]) == 3
    assert [node["level"] for node in report["search"]["nodes"]] == [0] * 4 + [1] * 2
    assert json.loads((output / "report.json").read_text()) == report
    assert (output / "report.html").is_file() and (output / "tradeoff.png").is_file()
    journal = (output / "journal.jsonl").read_bytes()

    status, out, err = cofitune("run", "--config", tmp_path / "run.yaml", "--json")
    again = json.loads(out)
    assert status == 0 and (output / "journal.jsonl").read_bytes() == journal
    assert again["methods"] == report["methods"] and again["search"] == report["search"]

    status, _, err = cofitune("run", "--config", tmp_path / "run.yaml", "--training.learning_rate", "0.5")
    assert status == 2 and "begun with" in err and "0.5" in err

    (output / "report.html").unlink()
    assert cofitune("report", output)[0] == 0 and (output / "report.html").is_file()


def test_a_method_that_does_not_fit_is_shown_and_ends_with_status_1(cofitune, tiny_run, monkeypatch):
    train = Workbench.train

    def too_large(self, region, *args, **watching):
        if region.is_full:
            raise CofituneError("Out of memory at step 1. Take a smaller batch.")
        return train(self, region, *args, **watching)

    monkeypatch.setattr(Workbench, "train", too_large)
    status, out, err = cofitune("run", *arguments(tiny_run, region="ffn@3"))
    assert "CoFiTune fine" in out and "[bold]" not in out and "[dim]" not in out
    assert status == 1 and "failed: full SFT; the report says why" in err
    assert "Out of memory at step 1" in " ".join(out.split())
    page = (Path(tiny_run["output"]) / "report.html").read_text()
    assert "Out of memory at step 1. Take a smaller batch." in page


def test_a_failed_check_ends_with_status_1(cofitune, tiny_run, monkeypatch):
    from cofitune_fast.pipeline import pipeline

    monkeypatch.setattr(pipeline, "check_delta", lambda *_: [
        {"name": "merged model scores the same", "passed": False, "detail": "largest difference 0.1"}])
    status, out, err = cofitune("run", *arguments(tiny_run, region="ffn@3", **{"run.full_sft": "false"}))
    assert status == 1 and "✗ merged model scores the same: largest difference 0.1" in out
    assert "failed: the check 'merged model scores the same'" in err


def test_compare_without_methods_names_run_and_does_its_job(cofitune, tiny_run):
    settings = arguments(tiny_run, region="ffn@3", **{"anchor.weight": 0, "run.full_sft": "false"})
    status, out, err = cofitune("compare", *settings, "--json")
    assert status == 0 and "cofitune run" in err
    assert [row["name"] for row in json.loads(out)["methods"]] == ["base", "CoFiTune coarse"]
    assert cofitune("run", *settings, "--json")[0] == 0  # in the same folder, nothing is trained again


def test_a_run_that_is_stopped_has_a_page_of_what_is_there(cofitune, tiny_run, monkeypatch):
    train = Workbench.train

    def stopped(self, region, *args, **watching):
        if region.is_full:
            raise KeyboardInterrupt
        return train(self, region, *args, **watching)

    monkeypatch.setattr(Workbench, "train", stopped)
    status, _, err = cofitune("run", *arguments(tiny_run, region="ffn@3", **{"anchor.weight": 0}))
    page = Path(tiny_run["output"]) / "report.html"
    assert status == 130 and "the same command goes on from there" in err and "CoFiTune coarse" in page.read_text()
