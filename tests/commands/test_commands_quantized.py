"""`model.quantize` on the command line: train, evaluate, importance and merge; refused where regions change."""

import json
from pathlib import Path

import pytest

from cofitune_fast.importance import Importance
from cofitune_fast.models import load_model
from cofitune_fast.models.fingerprint import fingerprint
from cofitune_fast.regions import Region, read_delta
from cofitune_fast.trials import TrialData, Workbench

pytest.importorskip("bitsandbytes", reason="bitsandbytes is missing: pip install '.[quantize]'")

REGION = "ffn.up+ffn.down@50%-75%"


@pytest.fixture
def cofitune(command_line, tiny_run):
    """Runs a command on the tiny run, quantised."""
    def run(command, method, *extra, **overrides):
        settings = {**tiny_run, "model.quantize": method, **{k.replace("__", "."): v for k, v in overrides.items()}}
        return command_line(command, *extra, *(part for key, value in settings.items() for part in (f"--{key}", value)))

    return run


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_train_evaluate_and_merge(cofitune, tiny_run, tmp_path, method):
    base = fingerprint(load_model(tiny_run["model"], device="cpu").model)
    status, out, err = cofitune("train", method, "--json", region=REGION, mask="rank")
    assert status == 0, err
    result = json.loads(out)
    info = read_delta(result["delta"])
    assert info.base.fingerprint == base
    assert info.settings["quantize"] == method
    importance = Importance.load(Path(tiny_run["output"]) / "importance.safetensors")
    assert importance.base_fingerprint == base

    def scores(how, **options):
        status, out, err = cofitune("evaluate", how, "--json", **options)
        assert status == 0, err
        return json.loads(out)["tasks"]["speciality"]

    tuned = scores(method, delta=result["delta"])
    assert tuned != scores(method, region=REGION)
    assert scores(method, region=REGION) != scores("none")  # the rest is quantised indeed
    assert scores(method) != scores(method, region=REGION)  # and without a region everything is

    status, out, err = cofitune("merge", method, "--json", delta=result["delta"], output=tmp_path / "merged")
    assert status == 0, err
    merged = load_model(tmp_path / "merged", device="cpu").model
    assert getattr(merged.config, "quantization_config", None) is None
    assert scores("none", model=tmp_path / "merged") == scores("none", delta=result["delta"])


def test_importance_of_a_wholly_quantised_model(cofitune, tiny_run):
    status, out, err = cofitune("importance", "nf4", "--json")
    assert status == 0, err
    assert json.loads(out)["layers"] == [0, 1, 2, 3]


@pytest.mark.parametrize(("command", "extra"), [("search", ()), ("search", ("--dry-run",)), ("compare", ())])
def test_commands_that_change_the_region_refuse(cofitune, tiny_run, command, extra):
    status, _, err = cofitune(command, "nf4", *extra)
    assert status == 2 and "leave model.quantize out, or use `cofitune train`" in err
    assert not Path(tiny_run["output"]).exists()


def test_full_fine_tuning_leaves_nothing_to_quantise(cofitune):
    status, _, err = cofitune("train", "nf4", region="full")
    assert status == 2 and "left to quantise" in err


def test_an_unknown_method_is_named(cofitune):
    status, _, err = cofitune("train", "fp4", region=REGION)
    assert status == 2 and "model.quantize in the command line is wrong" in err


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_a_trial_puts_the_base_back(tiny_run, method):
    region = Region.parse(REGION)
    loaded = load_model(tiny_run["model"], device="cpu", quantize=method, keep=region.modules)
    full = load_model(tiny_run["model"], device="cpu")
    bench = Workbench(loaded, TrialData(train=tiny_run["data.train"]))
    plain = Workbench(full, TrialData())
    assert (bench.base, bench.total_parameters) == (plain.base, plain.total_parameters)
    before = bench.digests
    with bench.trial(region):
        bench.train(region, tiny_run["output"], {"learning_rate": 1e-2})
        changed = bench.model.get_submodule(region.modules(bench.model)[0]).weight.detach().clone()
    assert not changed.equal(bench.model.get_submodule(region.modules(bench.model)[0]).weight)
    assert Workbench(loaded, TrialData()).digests == before
