from __future__ import annotations

import json
import math
import statistics

import pytest
import torch

from cofitune_fast.errors import CofituneError
from cofitune_fast.scoring import ItemScore, Score, SuiteScores, paired_difference
from cofitune_fast.scoring.results import make_score


def sample_items(count, seed, shift=0.0):
    """Answers of 1 to 40 tokens, of which long ones have the lower NLL per token: a ratio far from a plain mean."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 41, (count,), generator=generator)
    per_token = (3 - tokens / 25 + 0.5 * torch.randn(count, generator=generator) + shift).clamp(min=0.05)
    correct = torch.rand(count, generator=generator) < 0.3
    return [
        ItemScore(nll, number, hit)
        for nll, number, hit in zip((per_token * tokens).tolist(), tokens.tolist(), correct.tolist(), strict=True)
    ]


def test_values_by_hand():
    score = make_score(
        [ItemScore(2.0, 1, True), ItemScore(3.0, 4, False), ItemScore(5.0, 5, True)], "likelihood", "exact"
    )
    assert (score.n, score.metric) == (3, "likelihood")
    assert score.value == score.metrics["likelihood"] == pytest.approx(math.exp(-1))
    assert score.metrics["nll"] == pytest.approx(1)
    assert score.metrics["exact"] == pytest.approx(2 / 3)
    assert score.metrics["exact_se"] == pytest.approx(math.sqrt(2 / 9 / 2))
    residuals = (2 - 1, 3 - 4, 5 - 5)
    nll_se = math.sqrt(sum(r * r for r in residuals) / 2 / 3) / (10 / 3)
    assert score.metrics["nll_se"] == pytest.approx(nll_se)
    assert score.se == pytest.approx(math.exp(-1) * nll_se)


def test_standard_errors_agree_with_a_bootstrap():
    items = sample_items(400, seed=0)
    score = make_score(items, "likelihood", "exact")
    table = torch.tensor([[item.nll, item.tokens, item.correct] for item in items], dtype=torch.float64)
    draws = torch.randint(len(items), (4000, len(items)), generator=torch.Generator().manual_seed(1))
    nll, tokens, correct = table[draws].sum(1).unbind(1)
    for name, replicates in {
        "nll": nll / tokens,
        "likelihood": torch.exp(-nll / tokens),
        "exact": correct / len(items),
    }.items():
        # 4000 replicates know a standard deviation to some 1.1 %
        assert score.metrics[f"{name}_se"] == pytest.approx(replicates.std().item(), rel=0.05), name


@pytest.mark.parametrize("metric", ["likelihood", "exact"])
def test_paired_differences(metric):
    first = make_score(sample_items(300, seed=0), metric, "exact")
    second = make_score(sample_items(300, seed=0, shift=0.1), metric, "exact")
    assert paired_difference(first, first) == (0, 0)
    difference, se = paired_difference(first, second)
    assert difference == first.value - second.value
    if metric == "likelihood":
        assert difference > 0
        assert se < 0.3 * math.hypot(first.se, second.se)
        replicates = []
        generator = torch.Generator().manual_seed(2)
        for _ in range(1000):
            draw = torch.randint(300, (300,), generator=generator).tolist()
            one, two = (make_score([score.items[i] for i in draw], metric, "exact") for score in (first, second))
            replicates.append(one.value - two.value)
        assert se == pytest.approx(statistics.stdev(replicates), rel=0.1)


def test_paired_differences_need_the_same_items():
    first = make_score(sample_items(10, 0), "likelihood", "exact")
    for other in (
        make_score(sample_items(9, 0), "likelihood", "exact"),
        make_score(sample_items(10, 0), "exact", "exact"),
        make_score(sample_items(10, 5), "likelihood", "exact"),
    ):
        with pytest.raises(CofituneError, match="needs two scores of the same items by the same metric"):
            paired_difference(first, other)
    with pytest.raises(CofituneError, match="needs the per-item values of both scores"):
        paired_difference(first, Score.from_dict(first.to_dict()))


def suite_scores():
    def score(seed, metric="likelihood"):
        return make_score(sample_items(20, seed), metric, "exact")

    tasks = {
        "speciality": {"s": score(0)},
        "knowledge": {"a": score(1), "b": score(2, "exact"), "c": score(3)},
        "reasoning": {"d": score(4)},
        "instruction": {"e": score(5)},
    }
    return SuiteScores.of(tasks)


def test_groups_vers_and_uni():
    scores = suite_scores()
    a, b, c = scores.tasks["knowledge"].values()
    assert scores.spec == scores.tasks["speciality"]["s"].value
    assert scores.spec_se == scores.tasks["speciality"]["s"].se
    assert scores.knowledge == pytest.approx((a.value + b.value + c.value) / 3)
    assert scores.knowledge_se == pytest.approx(math.sqrt(a.se**2 + b.se**2 + c.se**2) / 3)
    assert scores.vers == pytest.approx((scores.knowledge + scores.reasoning + scores.instruction) / 3)
    assert scores.vers_se == pytest.approx(
        math.sqrt(scores.knowledge_se**2 + scores.reasoning_se**2 + scores.instruction_se**2) / 3
    )
    assert scores.uni == pytest.approx(scores.spec + scores.vers)
    assert scores.uni_se == pytest.approx(math.sqrt(scores.spec_se**2 + scores.vers_se**2))


def test_dictionaries_go_through_json():
    scores = suite_scores()
    entry = json.loads(json.dumps(scores.to_dict(items=True), allow_nan=False))
    again = SuiteScores.from_dict({"name": "base", **entry})
    assert again == scores
    assert isinstance(again.tasks["knowledge"]["a"].items[0], ItemScore)
    short = scores.to_dict()
    names = ("spec", "vers", "knowledge", "reasoning", "instruction", "uni")
    assert list(short) == [key for name in names for key in (name, f"{name}_se")] + ["tasks"]
    assert "items" not in short["tasks"]["speciality"]["s"]
    assert SuiteScores.from_dict(short).tasks["speciality"]["s"].items == []
    with pytest.raises(CofituneError, match="These scores lack vers_se; they were not written by SuiteScores"):
        SuiteScores.from_dict({key: value for key, value in short.items() if key != "vers_se"})
