"""Intervals: against formulas, against single resamples, and by how often they hold the truth."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from synthetic_comparison import drifted, suite

from cofitune_fast.compare.curves.draws import (
    RESAMPLES,
    Estimate,
    mean_over_seeds,
    seed_weights,
    suite_estimates,
    suite_values,
)
from cofitune_fast.errors import CofituneError
from cofitune_fast.scoring import SuiteScores, resampled_figures

T_975 = {1: 12.706, 2: 4.303, 3: 3.182}  # Student's t, 97.5 %


def constant(value):
    return Estimate(value, np.full(RESAMPLES, float(value)))


@pytest.mark.parametrize("k", [2, 3, 4])
def test_without_noise_of_items_the_interval_is_that_of_students_t(k):
    seeds = list(range(1, k + 1))
    values = np.array([0.31, 0.27, 0.30, 0.33])[:k]
    weights = seed_weights(seeds, 400_000)
    assert weights.shape == (400_000, k)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-9)
    low, high = np.quantile(weights @ values, [0.025, 0.975])
    half = T_975[k - 1] * values.std(ddof=1) / math.sqrt(k)
    assert high - values.mean() == pytest.approx(half, rel=0.03)
    assert values.mean() - low == pytest.approx(half, rel=0.03)


def test_the_weights_are_the_same_for_the_same_seeds_only():
    np.testing.assert_array_equal(seed_weights([1, 2, 3]), seed_weights([1, 2, 3]))
    assert not np.allclose(seed_weights([1, 2, 3]), seed_weights([1, 2, 4]))
    np.testing.assert_array_equal(seed_weights([7]), np.ones((RESAMPLES, 1)))


def test_a_shift_shared_by_all_seeds_cancels_in_the_difference():
    one = mean_over_seeds({1: constant(0.5), 2: constant(0.7), 3: constant(0.9)})
    two = mean_over_seeds({1: constant(0.4), 2: constant(0.6), 3: constant(0.8)})
    difference = one - two
    assert (one.value, difference.value) == (pytest.approx(0.7), pytest.approx(0.1))
    assert difference.interval() == (pytest.approx(0.1), pytest.approx(0.1))
    low, high = one.interval()
    assert low < 0.5 < 0.9 < high  # three seeds: beyond their range


def test_one_seed_keeps_the_draws_of_its_items():
    draws = np.linspace(0, 1, RESAMPLES)
    found = mean_over_seeds({5: Estimate(0.5, draws)})
    np.testing.assert_array_equal(found.draws, draws)
    entry = found.to_dict()
    assert entry == {"value": 0.5, "low": pytest.approx(0.025, abs=1e-3), "high": pytest.approx(0.975, abs=1e-3)}


@pytest.mark.parametrize(("seed_noise", "item_noise"), [(0.02, 0.0), (0.0, 0.02), (0.02, 0.02)])
def test_intervals_hold_the_truth_in_19_of_20_cases(seed_noise, item_noise):
    """Three seeds, items shared by them; the truth is 0. With 600 cases the share is known to 0.9 points."""
    generator = np.random.default_rng(4)
    held = 0
    for _ in range(600):
        shared = item_noise * generator.standard_normal()
        draws = shared + item_noise * generator.standard_normal(RESAMPLES)
        runs = {}
        for seed in (1, 2, 3):
            own = seed_noise * generator.standard_normal()
            runs[seed] = Estimate(shared + own, draws + own)
        low, high = mean_over_seeds(runs).interval()
        held += low <= 0 <= high
    assert 0.92 <= held / 600 <= 0.99


def test_estimates_are_the_suites_figures_and_their_resamples():
    suites = {"a": suite("e2e", 0.5, 0.1, "test"), "b": suite("e2e", 0.9, 0.2, "test", run_seed=3)}
    suites["b"] = drifted(suites["b"], 0.25)
    found = suite_estimates(suites)
    for name, scores in suites.items():
        drawn = resampled_figures(scores, RESAMPLES)
        for figure in ("spec", "vers", "knowledge", "reasoning", "instruction", "uni"):
            assert found[name][figure].value == getattr(scores, figure)
            np.testing.assert_allclose(found[name][figure].draws, drawn[figure], rtol=1e-12)
        chat = scores.tasks["instruction"]["chat"].metrics["likelihood"]
        assert found[name]["instruction_likelihood"].value == pytest.approx(chat, rel=1e-12)
        np.testing.assert_allclose(found[name]["instruction_likelihood"].draws, drawn["instruction"], rtol=1e-12)
    assert not {"drift", "task_drift"} & found["a"].keys()
    assert [found["b"][name].value for name in ("drift", "task_drift")] == pytest.approx([-0.25, -0.75])
    low, high = found["b"]["drift"].interval()
    assert (high - low) / 2 == pytest.approx(1.96 * suites["b"].drift.se, rel=0.1)
    assert suite_values(suites["b"]) == {key: entry.value for key, entry in found["b"].items()}


def test_the_likelihood_leaves_accuracies_of_the_group_out():
    scores = suite("e2e", 0, 0, "test")
    accuracy = scores.tasks["knowledge"]["arc"]
    chat = scores.tasks["instruction"]["chat"]
    mixed = SuiteScores.of({**scores.tasks, "instruction": {"chat": chat, "ifeval": accuracy}})
    (found,) = suite_estimates({"a": mixed}).values()
    assert found["instruction"].value == pytest.approx((chat.value + accuracy.value) / 2)
    assert found["instruction_likelihood"].value == pytest.approx(chat.value)
    without = SuiteScores.of({**scores.tasks, "instruction": {"ifeval": accuracy}})
    assert "instruction_likelihood" not in suite_values(without)
    assert "instruction_likelihood" not in suite_estimates({"a": without})["a"]


def test_other_items_are_refused():
    one = suite("e2e", 0, 0, "test")
    with pytest.raises(CofituneError, match="The scores a and b are of other items or of another tokenizer"):
        suite_estimates({"a": one, "b": suite("e2e", 0, 0, "valid")})
    with pytest.raises(CofituneError, match="cannot stand in one table"):
        suite_estimates({"a": one, "b": suite("e2e", 0, 0, "test", items=20)})
    bare = SuiteScores.from_dict(one.to_dict())
    with pytest.raises(CofituneError, match="The scores b have no per-item values"):
        suite_estimates({"a": one, "b": bare})
    with pytest.raises(CofituneError, match="cannot stand in one table"):
        suite_estimates({"a": drifted(one, 0.0), "b": drifted(one, 0.1, items=30)})
    with pytest.raises(CofituneError, match="cannot stand in one table"):
        suite_estimates({"a": drifted(one, 0.0), "b": replace(drifted(one, 0.1, items=30), drift=None)})


def test_a_run_from_before_there_was_a_kl_on_the_task_stands_beside_one_that_has_it():
    one = drifted(suite("e2e", 0, 0, "test"), 0.1)
    found = suite_estimates({"old": replace(one, task_drift=None), "new": one})
    assert found["old"].keys() ^ found["new"].keys() == {"task_drift"}


def test_a_share_of_a_loss_that_may_be_none_is_beyond_all_bounds():
    loss = Estimate(1.0, np.ones(RESAMPLES))
    other = Estimate(2.0, np.where(np.arange(RESAMPLES) < 100, -1.0, 2.0))
    share = loss.share_of(other)
    assert share.value == 0.5 and share.interval() == (0.5, math.inf)
