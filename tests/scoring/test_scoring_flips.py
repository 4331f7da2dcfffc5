"""Flips of items between two models, and McNemar's exact test against counts by hand and by enumeration."""

from __future__ import annotations

import itertools

import pytest

from cofitune_fast.errors import CofituneError
from cofitune_fast.scoring import (
    DriftItem,
    FollowedItem,
    GeneratedItem,
    ItemScore,
    SuiteScores,
    mcnemar,
    score_flips,
    suite_flips,
)
from cofitune_fast.scoring.results import make_score, score_of


def answers(text, metric="accuracy"):
    """A score whose items are right where the text has an x."""
    return make_score([ItemScore(1.0, 2, letter == "x") for letter in text], metric, "accuracy")


@pytest.mark.parametrize(("one", "other", "p"), [
    (0, 0, 1.0), (1, 0, 1.0), (3, 3, 1.0), (5, 0, 2 / 32), (0, 5, 2 / 32), (6, 1, 2 * (1 + 7) / 128),
    (10, 2, 2 * (1 + 12 + 66) / 4096),
])  # fmt: skip
def test_p_by_hand(one, other, p):
    assert mcnemar(one, other) == pytest.approx(p, rel=1e-12)


@pytest.mark.parametrize("flipped", range(1, 9))
def test_p_is_the_share_of_coin_throws_at_least_as_uneven(flipped):
    throws = [sum(coins) for coins in itertools.product((0, 1), repeat=flipped)]
    for one in range(flipped + 1):
        uneven = abs(2 * one - flipped)
        assert mcnemar(one, flipped - one) == pytest.approx(
            sum(abs(2 * heads - flipped) >= uneven for heads in throws) / len(throws))


def test_many_items_do_not_overflow():
    assert mcnemar(3000, 2000) < 1e-40 and mcnemar(2500, 2500) == 1.0


def test_items_flip_both_ways():
    flips = score_flips(answers("xxx..xx."), answers(".xxx.x.."))
    assert flips == (2, 1, 8) and flips.to_dict() == {"right_to_wrong": 2, "wrong_to_right": 1, "items": 8, "p": 1.0}
    assert score_flips(answers("x.", "likelihood"), answers(".x", "likelihood")) == (1, 1, 2)


def test_generated_answers_and_instructions_are_right_or_wrong():
    numbers = [[GeneratedItem("", (1,) * 10, (1,) * 18, 0.5, exact, last) for exact, last in pairs]
               for pairs in ([(True, True), (False, True)], [(False, True), (False, False)])]
    for metric, wanted in (("exact_answer", (1, 0, 2)), ("last_number", (1, 0, 2)), ("bleu", (1, 0, 2))):
        assert score_flips(*(score_of(items, metric, (metric,)) for items in numbers)) == wanted
    text = [score_of([GeneratedItem("", (1,) * 10, (1,) * 18, 0.5)] * 2, "bleu", ("bleu",))] * 2
    assert score_flips(*text) is None
    followed = [[FollowedItem("", (True, True)), FollowedItem("", (True, False))],
                [FollowedItem("", (True, False)), FollowedItem("", (True, True))]]
    names = ("prompt_level_strict_acc",)
    assert score_flips(*(score_of(items, *names, names) for items in followed)) == (1, 1, 2)
    drift = [score_of([DriftItem(1.0, 2)] * 2, "kl", ("kl",))] * 2
    assert score_flips(*drift) is None


def test_a_suites_flips_are_added_by_group_and_over_versatility():
    def suite(knowledge, more, reasoning, instruction):
        return SuiteScores.of({
            "speciality": {"s": answers("x.x")}, "knowledge": {"a": answers(knowledge), "b": answers(more)},
            "reasoning": {"c": answers(reasoning)}, "instruction": {"d": answers(instruction, "likelihood")}})

    found = suite_flips(suite("xx", "xxx", "..", "x."), suite("..", "xx.", "xx", "x."))
    assert found == {"speciality": (0, 0, 3), "knowledge": (3, 0, 5), "reasoning": (0, 2, 2),
                     "instruction": (0, 0, 2), "vers": (3, 2, 9)}
    assert found["knowledge"].p == 0.25 and found["vers"].p == 1.0


@pytest.mark.parametrize("other", [answers("xxx"), make_score([ItemScore(1.0, 1, True)] * 2, "accuracy", "accuracy")])
def test_other_items_and_no_items_are_refused(other):
    before = answers("xx")
    if len(other.items) == 2:
        other = type(other)(**{**vars(other), "items": ()})
    with pytest.raises(CofituneError, match="need the per-item values of two scores of the same items"):
        score_flips(before, other)
