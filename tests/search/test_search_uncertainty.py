"""Bootstrap draws against direct resampling, and the rules that rest on them."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest

from cofitune_fast.scoring import ItemScore, SuiteScores, resampled_figures
from cofitune_fast.scoring.results import make_score
from cofitune_fast.search.uncertainty import Estimate, clearly_behind, share_of_wins, tied_with_best


def suite(seed, size=40, shift=0.0):
    generator = np.random.default_rng(seed)

    def task(metric, success):
        return make_score([
            ItemScore(float(generator.uniform(1, 9) + shift), int(generator.integers(1, 6)),
                      bool(generator.random() < 0.6 - shift / 10)) for _ in range(size)
        ], metric, success)

    return SuiteScores.of({
        "speciality": {"s": task("likelihood", "exact"), "t": task("exact", "exact")},
        "knowledge": {"k": task("accuracy", "accuracy")}, "reasoning": {"r": task("nll", "exact")},
        "instruction": {"i": task("likelihood", "exact")},
    })


def test_draws_are_the_figures_of_the_resampled_items():
    scores = suite(0)
    drawn = resampled_figures(scores, resamples=5, seed=3)
    for draw in range(5):
        tasks = {}
        for group, entries in scores.tasks.items():
            tasks[group] = {}
            for name, score in entries.items():
                counts = np.random.default_rng((3, zlib.crc32(name.encode()))).multinomial(
                    score.n, np.full(score.n, 1 / score.n), 5)[draw]
                items = [item for item, count in zip(score.items, counts, strict=True) for _ in range(count)]
                success = "accuracy" if "accuracy" in score.metrics else "exact"
                tasks[group][name] = make_score(items, score.metric, success)
        expected = SuiteScores.of(tasks)
        for key in ("spec", "vers", "knowledge", "reasoning", "instruction", "uni"):
            assert drawn[key][draw] == pytest.approx(getattr(expected, key), abs=1e-12)


def test_the_spread_of_the_draws_is_the_standard_error():
    scores = suite(1, size=300)
    drawn = resampled_figures(scores, resamples=4000)
    for key in ("spec", "knowledge", "instruction", "uni"):
        assert drawn[key].std() == pytest.approx(getattr(scores, f"{key}_se"), rel=0.06)


def test_the_same_items_are_drawn_for_every_model():
    first, again = suite(2), suite(2, shift=0.5)
    a, b = resampled_figures(first)["knowledge"], resampled_figures(first)["knowledge"]
    assert np.array_equal(a, b)
    one = Estimate(first.uni, resampled_figures(first)["uni"])
    two = Estimate(again.uni, resampled_figures(again)["uni"])
    paired = one.minus(two)
    assert paired.se < 0.5 * math.hypot(first.uni_se, again.uni_se)
    assert paired.low < paired.value < paired.high


def normal(values, errors, common=0.0, draws=20000):
    """Estimates with independent normal errors and one that all share."""
    generator = np.random.default_rng(0)
    shared = generator.normal(0, common, draws) if common else 0.0
    return {name: Estimate(value, value + shared + generator.normal(0, errors, draws))
            for name, value in values.items()}


def test_only_what_is_clearly_behind_is_named():
    estimates = normal({"a": 1.0, "b": 0.99, "c": 0.90, "d": 0.5}, 0.02, common=0.5)
    assert clearly_behind(estimates, 0.95) == {"c", "d"}  # the shared error cancels
    assert clearly_behind(estimates, 0.95, places=3) == {"d"}
    assert clearly_behind(estimates, 0.95, places=4) == set()
    assert clearly_behind({"a": estimates["a"]}, 0.95) == set()


def test_many_comparisons_are_paid_for():
    """Twelve nodes that are in truth equal: one test for each drops some of them far more often than all together."""
    generator, together, one_by_one = np.random.default_rng(5), 0, 0
    for _ in range(300):
        luck = generator.normal(0, 0.05, 12)
        draws = generator.normal(0, 0.05, (12, 500))
        estimates = {str(node): Estimate(float(luck[node]), luck[node] + draws[node]) for node in range(12)}
        together += len(clearly_behind(estimates, 0.95))
        one_by_one += int(((luck.max() - luck) > 1.645 * 0.05 * math.sqrt(2)).sum())
    assert together < one_by_one / 2


def test_an_equal_copy_is_never_behind():
    estimate = Estimate(1.0, np.random.default_rng(0).normal(1, 0.1, 500))
    assert clearly_behind({"a": estimate, "b": estimate}, 0.95) == set()
    assert tied_with_best({"a": estimate, "b": estimate}) == ["a", "b"]


def test_ties_are_within_one_standard_error_of_the_difference():
    estimates = normal({"a": 1.0, "b": 0.98, "c": 0.96}, 0.02)
    assert tied_with_best(estimates) == ["a", "b"]  # 0.02 and 0.04 behind, error 0.028
    assert tied_with_best(normal({"a": 0.5}, 0.1)) == ["a"]


def test_share_of_wins():
    estimates = normal({"a": 1.0, "b": 1.0}, 0.02)
    assert share_of_wins(estimates, "a") + share_of_wins(estimates, "b") == pytest.approx(1.0)
    assert share_of_wins(estimates, "a") == pytest.approx(0.5, abs=0.02)
    assert share_of_wins({"a": estimates["a"]}, "a") == 1.0
