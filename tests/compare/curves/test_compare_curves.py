"""From runs to curves and verdicts: against numbers taken from the runs, and what is missing, failed or foreign."""

from __future__ import annotations

import copy
import json
import statistics
from dataclasses import replace

import numpy as np
import pytest
from synthetic_comparison import METHODS, RATES, SEEDS, comparison

from cofitune_fast.compare.curves.curves import curves_and_verdicts
from cofitune_fast.compare.curves.draws import FIGURES
from cofitune_fast.compare.curves.frontier import hull
from cofitune_fast.compare.curves.points import MEASURES
from cofitune_fast.errors import CofituneError
from cofitune_fast.methods.entries import base_name
from cofitune_fast.scoring import paired_difference

OURS = "CoFiTune + anchor"


@pytest.fixture(scope="module")
def judged():
    return comparison()


def curve_of(content, method, task="e2e"):
    return next(entry for entry in content["curves"] if (entry["method"], entry["task"]) == (method, task))


def verdict_of(content, measure, task="e2e"):
    return next(entry for entry in content["verdicts"] if (entry["measure"], entry["task"]) == (measure, task))


def row_of(content, method, measure, task="e2e"):
    return next(row for row in verdict_of(content, measure, task)["rows"] if row["method"] == method)


def runs_of(content, method, rate, task="e2e"):
    return [run for run in content["runs"] if (run["method"], run["task"], run["learning_rate"]) == (method, task, rate)
            and run["state"] == "done"]  # fmt: skip


def test_a_curve_for_each_task_and_method_and_a_verdict_for_each_measure(judged):
    content, _ = judged
    assert [(entry["task"], entry["method"]) for entry in content["curves"]] == [
        (task, method) for task in ("e2e", "gsm8k") for method in METHODS]
    assert [(entry["task"], entry["measure"]) for entry in content["verdicts"]] == [
        (task, measure) for task in ("e2e", "gsm8k") for measure in MEASURES]
    assert json.loads(json.dumps(content, allow_nan=False)) == content


@pytest.mark.parametrize("method", METHODS)
def test_points_are_means_over_the_seeds_present(judged, method):
    content, values = judged
    for point, rate in zip(curve_of(content, method)["points"], RATES, strict=True):
        runs = runs_of(content, method, rate)
        assert (point["learning_rate"], point["alpha"]) == (rate, None)
        assert point["seeds"] == [run["seed"] for run in runs]
        assert [entry["seed"] for entry in point["missing"]] == sorted(set(SEEDS) - set(point["seeds"]))
        for part in ("valid", "test"):
            for figure in FIGURES[:6]:
                expected = statistics.fmean(run[part][figure] for run in runs)
                found = point[part][figure]
                assert (found if part == "valid" else found["value"]) == pytest.approx(expected, rel=1e-12)
        kl = statistics.fmean(run["test"]["drift"]["kl"] for run in runs)
        assert point["test"]["drift"]["value"] == pytest.approx(-kl, rel=1e-12)
        base = values[base_name("e2e")]["test"]
        assert point["minus_base"]["spec"]["value"] == pytest.approx(point["test"]["spec"]["value"] - base.spec)
        assert point["cost"]["training_seconds"] == pytest.approx(
            statistics.fmean(run["cost"]["training_seconds"] for run in runs))
        for entry in (*point["test"].values(), *point["minus_base"].values()):
            assert entry["low"] <= entry["value"] <= entry["high"]


def test_with_one_seed_the_interval_is_that_of_its_items(judged):
    content, values = judged
    point = curve_of(content, "bottom frozen")["points"][2]
    assert point["interval_of"] == "items" and point["seeds"] == [1]
    (run,) = runs_of(content, "bottom frozen", RATES[2])
    one, base = (values[name]["test"].tasks["speciality"]["e2e"] for name in (run["id"], base_name("e2e")))
    value, se = paired_difference(one, base)
    found = point["minus_base"]["spec"]
    assert found["value"] == pytest.approx(value)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 * se, rel=0.1)
    assert curve_of(content, "LoRA")["points"][0]["interval_of"] == "items and seeds"


def test_what_is_missing_or_failed_is_named_with_its_reason(judged):
    content, _ = judged
    assert curve_of(content, "LoRA")["points"][2]["missing"] == [{"seed": 3, "state": "missing", "why": "not run yet"}]
    assert curve_of(content, "full SFT")["points"][3]["missing"] == [
        {"seed": 2, "state": "failed", "why": "the loss became NaN at step 40"}]
    sentence = row_of(content, "full SFT", "instruction_likelihood")["sentence"]
    assert sentence.endswith("Provisional: seed 2 failed at 0.0004.")
    assert "Provisional: a single seed; " in row_of(content, "bottom frozen", "vers")["sentence"]
    assert "Provisional" not in row_of(content, OURS, "vers")["sentence"]


def test_a_seed_that_no_run_stands_for_is_missing_too(judged):
    content, values = comparison(methods={"full SFT": METHODS["full SFT"]}, tasks=("e2e",), gaps=False, judged=False)
    content["runs"] = [run for run in content["runs"] if run["seed"] != 2]
    found = curves_and_verdicts(content, values)["curves"][0]["points"]
    assert [point["missing"] for point in found] == [[{"seed": 2, "state": "missing", "why": None}]] * 4


def test_the_rate_is_chosen_on_valid(judged):
    content, _ = judged
    full = curve_of(content, "full SFT")
    for method in METHODS:
        curve = curve_of(content, method)
        uni = [point["valid"]["uni"] for point in curve["points"]]
        assert curve["chosen"]["uni"]["point"] == uni.index(max(uni))
        enough = 0.98 * full["points"][full["chosen"]["uni"]["point"]]["valid"]["spec"]
        able = [place for place, point in enumerate(curve["points"]) if point["valid"]["spec"] >= enough]
        kept = curve["chosen"]["equal_spec"]
        if not able:
            assert kept is None
        else:
            assert kept["point"] == max(able, key=lambda place: curve["points"][place]["valid"]["vers"])
    row = curve_of(content, OURS)["chosen"]["uni"]
    assert row["time_of_reference"] == pytest.approx(402 / 442)  # full SFT has the seeds 1 and 3
    assert row["outcome"]["instruction_likelihood"] == "ahead"
    assert set(full["chosen"]["uni"]["outcome"].values()) == {"level"}


def test_the_frontier_is_chosen_on_valid_not_on_test(judged):
    content, values = judged
    differ = 0
    for curve in content["curves"]:
        base = values[base_name(curve["task"])]
        for part in ("valid", "test"):
            points = [(base[part].spec, base[part].vers)] + [
                (point["valid"]["spec"], point["valid"]["vers"]) if part == "valid" else
                (point["test"]["spec"]["value"], point["test"]["vers"]["value"]) for point in curve["points"]]
            corners = [index - 1 if index else None for index in hull(*zip(*points, strict=True))]
            if part == "valid":
                assert curve["frontier"]["vers"] == corners
            differ += corners != curve["frontier"]["vers"]
    assert differ  # or this test could not tell


def test_the_verdict_at_equal_speciality_by_hand(judged):
    content, values = judged
    verdict = verdict_of(content, "instruction_likelihood", "gsm8k")
    full = curve_of(content, "full SFT", "gsm8k")
    best = full["points"][full["chosen"]["uni"]["point"]]
    target = 0.98 * best["test"]["spec"]["value"]
    assert verdict["reference"] == "full SFT" and verdict["reference_rate"] == best["learning_rate"]
    assert verdict["target"]["value"] == pytest.approx(target) and verdict["rivals"] == ["full SFT", "LoRA"]
    base = values[base_name("gsm8k")]["test"]
    losses = {}
    for row in verdict["rows"]:
        curve = curve_of(content, row["method"], "gsm8k")
        corners = [curve["points"][index]["test"] if index is not None else
                   {"spec": {"value": base.spec}, "instruction_likelihood": {"value": base.instruction}}
                   for index in curve["frontier"]["instruction_likelihood"]]
        spec, likelihood = ([corner[key]["value"] for corner in corners] for key in ("spec", "instruction_likelihood"))
        assert row["reaches"] == (max(spec) >= target)
        if row["reaches"]:
            losses[row["method"]] = base.instruction - np.interp(target, spec, likelihood)
            assert row["loss"]["value"] == pytest.approx(losses[row["method"]], rel=1e-9)
            assert row["versatility"]["value"] == pytest.approx(base.instruction - row["loss"]["value"])
    ours = next(row for row in verdict["rows"] if row["method"] == OURS)
    assert ours["outcome"] == {"full SFT": "ahead", "LoRA": "ahead"}
    for rival in ("full SFT", "LoRA"):
        assert ours["share"][rival]["value"] == pytest.approx(losses[OURS] / losses[rival])
        assert ours["difference"][rival]["value"] == pytest.approx(losses[rival] - losses[OURS])
        assert ours["difference"][rival]["low"] > 0
    corners = curve_of(content, OURS, "gsm8k")["frontier"]["instruction_likelihood"]
    assert ours["between"] == [f"{RATES[index]:g}" for index in corners[-2:]]
    assert f"loses {ours['loss']['value']:.3f} [" in ours["sentence"] and ours["sentence"].count(": ahead") == 2


def test_a_method_short_of_the_speciality_is_compared_where_both_are(judged):
    content, _ = judged
    row = row_of(content, "bottom frozen", "instruction_likelihood")
    assert not row["reaches"] and row["loss"] is None and row["between"] is None
    assert row["outcome"] == {"full SFT": "unreached", "LoRA": "unreached"} and row["share"] == {}
    highest = max(point["test"]["spec"]["value"] for point in curve_of(content, "bottom frozen")["points"])
    assert row["highest_spec"]["value"] == row["below"]["LoRA"]["spec"]["value"] == highest
    assert "bottom frozen does not reach a Spec of" in row["sentence"]


def test_intervals_apart_but_one_seed_is_open():
    methods = {"full SFT": METHODS["full SFT"], OURS: METHODS[OURS]}
    content, _ = comparison(methods=methods, tasks=("e2e",), seeds=(1,), gaps=False)
    row = row_of(content, OURS, "instruction_likelihood")
    assert row["outcome"] == {"full SFT": "open"} and row["seeds"] == 1
    assert row["loss"]["high"] < row_of(content, "full SFT", "instruction_likelihood")["loss"]["low"]
    content, _ = comparison(methods=methods, tasks=("e2e",), gaps=False)
    assert row_of(content, OURS, "instruction_likelihood")["outcome"] == {"full SFT": "ahead"}
    assert "ahead of full SFT: CoFiTune + anchor" in verdict_of(content, "instruction_likelihood")["sentence"]


def test_a_missing_run_away_from_the_target_leaves_the_verdict_as_it_is(judged):
    content, values = judged
    tried = 0
    for curve in content["curves"]:
        where = curve["method"], "instruction_likelihood", curve["task"]
        whole = row_of(content, *where)
        for index in curve["frontier"]["instruction_likelihood"]:
            if index is None or not whole["reaches"] or f"{RATES[index]:g}" in whole["between"]:
                continue
            away = next(run for run in runs_of(content, curve["method"], RATES[index], curve["task"])
                        if run["seed"] == 2)
            gone = {**away, "state": "missing", "valid": None, "test": None, "cost": None}
            runs = [gone if run is away else run for run in content["runs"] if run["task"] == curve["task"]]
            changed = content | {"tasks": [curve["task"]], "runs": runs}
            row = row_of(changed | curves_and_verdicts(changed, values), *where)
            if row["between"] == whole["between"]:  # without the run another corner can be chosen on valid
                assert row["seeds"] == whole["seeds"] and row["outcome"] == whole["outcome"]
                tried += 1
    assert tried


def test_twice_the_same_runs_are_level_and_differ_by_nothing():
    content, values = comparison(methods={"full SFT": METHODS["full SFT"]}, tasks=("e2e",), gaps=False, judged=False)
    twins = [{**run, "id": f"{run['id']}-twin", "method": "twin"} for run in content["runs"]]
    values |= {twin["id"]: values[run["id"]] for twin, run in zip(twins, content["runs"], strict=True)}
    content["runs"] += twins
    content["methods"].append({"name": "twin", "sentence": "", "recipe": {}})
    content |= curves_and_verdicts(content, values)
    row = row_of(content, "twin", "vers")
    assert row["outcome"] == {"full SFT": "level"}
    assert row["difference"]["full SFT"] == {"value": 0, "low": 0, "high": 0}


def test_one_method_one_rate_and_alphas():
    content, values = comparison(methods={"L2": METHODS["LoRA"]}, rates=(1e-4,), tasks=("e2e",), gaps=False)
    verdict = verdict_of(content, "vers")
    assert verdict["reference"] == "L2" and verdict["rows"][0]["outcome"] == {}
    assert verdict["sentence"].endswith("there is nothing beside L2.")
    for place, run in enumerate(content["runs"]):
        run |= {"alpha": 0.5 if place else 1.0, "seed": 1 if place < 2 else 2}
    found = curves_and_verdicts(content, values)["curves"][0]["points"]
    assert [(point["alpha"], point["seeds"]) for point in found] == [(0.5, [1, 2]), (1.0, [1])]


def test_without_any_run_there_are_no_figures_but_words():
    content, values = comparison(methods={"full SFT": METHODS["full SFT"]}, tasks=("e2e",), gaps=False, judged=False)
    for run in content["runs"]:
        run |= {"state": "missing", "valid": None, "test": None, "cost": None}
    found = curves_and_verdicts(content, values)
    assert found["curves"][0]["chosen"] == {"uni": None, "equal_spec": None}
    assert all(point["test"] == {} and len(point["missing"]) == 3 for point in found["curves"][0]["points"])
    assert {verdict["sentence"] for verdict in found["verdicts"]} == {"No run on e2e is done yet."}
    found = curves_and_verdicts(content | {"methods": [], "runs": []}, values)
    assert found["curves"] == [] and len(found["verdicts"]) == 3


def test_a_measure_that_a_run_lacks_is_not_judged():
    content, values = comparison(methods={"full SFT": METHODS["full SFT"]}, tasks=("e2e",), gaps=False, judged=False)
    first = values[content["runs"][0]["id"]]
    values[content["runs"][0]["id"]] = {part: replace(scores, drift=None) for part, scores in first.items()}
    found = curves_and_verdicts(content, values)
    drift = found["verdicts"][-1]
    assert drift["rows"] == [] and "not measured in every run on e2e: not judged" in drift["sentence"]
    assert found["verdicts"][0]["rows"] and "drift" not in found["curves"][0]["frontier"]


def test_the_reference_and_the_rivals_can_be_named(judged):
    content, values = judged
    named = content | {"reference": "LoRA", "rivals": ["L2 to the base"]}
    verdict = curves_and_verdicts(named, values)["verdicts"][0]
    assert verdict["reference"] == "LoRA" and verdict["rivals"] == ["LoRA", "L2 to the base"]


@pytest.mark.parametrize(("change", "words"), [
    (lambda c, v: c["runs"][0].update(base_fingerprint="sha256:cd"), "runs of different bases cannot stand in one"),
    (lambda c, v: c["runs"][0].update(method="DoRA"), "has the method DoRA, which this comparison does not name"),
    (lambda c, v: c["runs"][0].update(seed=9), "has the seed 9, which this comparison does not name"),
    (lambda c, v: c["runs"][1].update(seed=1), "Two runs stand for full SFT at 1e-05, seed 1, on e2e"),
    (lambda c, v: v.pop(c["runs"][0]["id"]), "The per-item values of full-sft-e2e-1e-05-1 are missing"),
    (lambda c, v: v.pop(base_name("e2e")), "The per-item values of base-e2e are missing"),
    (lambda c, v: v.update({c["runs"][0]["id"]: v[c["runs"][1]["id"]]}), "are not those of the run; score it anew"),
    (lambda c, v: v.update({base_name("e2e"): v["other"]}), "are of other items or of another tokenizer"),
    (lambda c, v: c.update(reference="DoRA"), "The reference DoRA is no method of this comparison"),
])  # fmt: skip
def test_what_cannot_stand_in_one_table_is_refused(change, words):
    content, values = comparison(methods={"full SFT": METHODS["full SFT"]}, rates=(1e-5,), gaps=False, judged=False)
    content, values = copy.deepcopy(content), values | {"other": values[base_name("gsm8k")]}
    change(content, values)
    with pytest.raises(CofituneError) as caught:
        curves_and_verdicts(content, values)
    assert words in str(caught.value)
