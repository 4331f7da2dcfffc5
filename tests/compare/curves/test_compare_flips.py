"""Flips over seeds and what a task's suite can show, against the items of the runs one by one."""

from __future__ import annotations

import statistics

import pytest
from synthetic_comparison import METHODS, comparison

from cofitune_fast.compare.curves.flips import flips_over_seeds
from cofitune_fast.methods.entries import base_name
from cofitune_fast.scoring import difference_error, mcnemar

GROUPS = ("speciality", "knowledge", "reasoning", "instruction")


@pytest.fixture(scope="module")
def judged():
    return comparison(tasks=("e2e",))


def right(suite, group):
    return [item.correct for score in suite.tasks[group].values() for item in score.items]


def expected(pairs, groups):
    """Counts per seed from the lists of right answers before and after."""
    rows = []
    for before, after in pairs:
        both = [pair for group in groups for pair in zip(right(before, group), right(after, group), strict=True)]
        lost, gained = both.count((True, False)), both.count((False, True))
        rows.append((lost, gained, mcnemar(lost, gained), len(both)))
    return rows


def assert_flips(entry, pairs, seeds, groups):
    rows = expected(pairs, groups)
    assert [(one["right_to_wrong"], one["wrong_to_right"], one["p"], one["items"]) for one in entry["seeds"]] == rows
    assert [one["seed"] for one in entry["seeds"]] == seeds and entry["items"] == rows[0][3]
    assert entry["right_to_wrong"] == pytest.approx(statistics.fmean(lost for lost, *_ in rows))
    assert entry["wrong_to_right"] == pytest.approx(statistics.fmean(gained for _, gained, *_ in rows))


def suites(judged, method, rate):
    content, values = judged
    return {run["seed"]: values[run["id"]]["test"] for run in content["runs"]
            if (run["method"], run["learning_rate"], run["state"]) == (method, rate, "done")}


@pytest.mark.parametrize("method", METHODS)
def test_flips_of_a_point_are_counted_seed_by_seed(judged, method):
    content, values = judged
    base = values[base_name("e2e")]["test"]
    curve = next(curve for curve in content["curves"] if curve["method"] == method)
    some = 0
    for point in curve["points"]:
        those = suites(judged, method, point["learning_rate"])
        assert set(point["flips"]) == {*GROUPS, "vers"}
        for group, entry in point["flips"].items():
            assert_flips(entry, [(base, those[seed]) for seed in sorted(those)], sorted(those),
                         GROUPS[1:] if group == "vers" else (group,))
            some += entry["right_to_wrong"]
    assert some > 0


def test_flips_against_the_reference_pair_the_seeds_that_both_have(judged):
    content, _ = judged
    curves = {curve["method"]: curve for curve in content["curves"]}
    best = {name: curve["points"][curve["chosen"]["uni"]["point"]] for name, curve in curves.items()}
    reference = suites(judged, "full SFT", best["full SFT"]["learning_rate"])
    assert curves["full SFT"]["chosen"]["uni"]["flips"] == {}
    for method in ("LoRA", "CoFiTune + anchor", "bottom frozen"):
        those = suites(judged, method, best[method]["learning_rate"])
        seeds = sorted(those.keys() & reference.keys())
        entry = curves[method]["chosen"]["uni"]["flips"]["vers"]
        assert_flips(entry, [(reference[seed], those[seed]) for seed in seeds], seeds, GROUPS[1:])
    assert flips_over_seeds({1: reference[1]}, {2: reference[1]}) == {}


def test_the_suites_resolution_is_of_the_least_certain_pair(judged):
    content, _ = judged
    best = {curve["method"]: curve["points"][curve["chosen"]["uni"]["point"]] for curve in content["curves"]}
    seed = min(best["full SFT"]["seeds"])
    first = {name: suites(judged, name, point["learning_rate"]).get(seed) for name, point in best.items()}
    reference = first.pop("full SFT")
    for entry, figure in zip(content["resolution"], ("vers", "uni"), strict=True):
        others = [suite for suite in first.values() if suite is not None]
        assert (entry["task"], entry["figure"], entry["paired"]) == ("e2e", figure, True)
        assert entry["smallest"] == pytest.approx(
            1.959964 * max(difference_error(suite, reference, figure) for suite in others), rel=1e-6)
        assert entry["largest"] == max(abs(getattr(suite, figure) - getattr(reference, figure)) for suite in others)
        assert entry["items"] == (400 if figure == "vers" else 480)


def test_a_single_method_is_told_from_the_base_and_without_a_run_there_is_the_base_alone():
    few = {"methods": {"full SFT": METHODS["full SFT"]}, "rates": (1e-4,), "seeds": (1,), "tasks": ("e2e",),
           "gaps": False}
    content, values = comparison(**few)
    (run,) = content["runs"]
    base = values[base_name("e2e")]["test"]
    assert content["resolution"][0]["smallest"] == pytest.approx(
        1.959964 * difference_error(values[run["id"]]["test"], base), rel=1e-6)
    from cofitune_fast.compare.curves.curves import curves_and_verdicts

    run |= {"state": "missing", "valid": None, "test": None, "cost": None}
    alone = curves_and_verdicts(content, values)["resolution"][0]
    assert not alone["paired"] and alone["smallest"] == pytest.approx(1.959964 * 2**0.5 * base.vers_se, rel=1e-6)
