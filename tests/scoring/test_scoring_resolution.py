"""What a suite can show: formulas by hand, the paired errors against the bootstrap's, and the sentences."""

from __future__ import annotations

import math

import pytest
from synthetic_comparison import suite

from cofitune_fast.errors import CofituneError
from cofitune_fast.scoring import (
    ItemScore,
    SuiteScores,
    count_items,
    difference_error,
    items_needed,
    resampled_together,
    smallest_difference,
    suite_resolution,
)
from cofitune_fast.scoring.results import make_score


def answers(text):
    return make_score([ItemScore(1.0, 2, letter == "x") for letter in text], "accuracy", "accuracy")


def plain(knowledge="x...", reasoning="xx..", instruction="xxx."):
    return SuiteScores.of({"speciality": {"s": answers("x.x.")}, "knowledge": {"a": answers(knowledge)},
                           "reasoning": {"b": answers(reasoning)}, "instruction": {"c": answers(instruction)}})


def test_formulas_by_hand():
    assert smallest_difference(0.01) == pytest.approx(0.0195996398)
    assert smallest_difference(0.01, 0.9) == pytest.approx(0.0164485363)
    assert items_needed(0.01, 100, 0.0098) == math.ceil(100 * (0.0195996398 / 0.0098) ** 2) == 400
    assert items_needed(0.02, 60) == math.ceil(60 * (0.0391992797 / 0.02) ** 2) == 231


def test_paired_errors_by_hand():
    """Of four items one flips in knowledge: differences -1, 0, 0, 0; the rest is the same."""
    first, second = plain(), plain(knowledge="....")
    se = math.sqrt((0.75**2 + 3 * 0.25**2) / (4 * 3))
    assert difference_error(first, second, "knowledge") == pytest.approx(se)
    assert difference_error(first, second, "vers") == difference_error(first, second, "uni") == pytest.approx(se / 3)
    assert difference_error(first, second, "reasoning") == difference_error(first, second, "spec") == 0
    assert difference_error(first) == pytest.approx(math.sqrt(2) * first.vers_se)
    assert (count_items(first), count_items(first, "uni"), count_items(first, "knowledge")) == (12, 16, 4)


@pytest.mark.parametrize("figure", ["vers", "uni", "spec", "reasoning"])
def test_paired_errors_agree_with_the_bootstrap(figure):
    first, second = suite("e2e", 0, 0, "test"), suite("e2e", 0.5, 0.4, "test", run_seed=3)
    drawn = resampled_together([first, second], 4000)[figure]
    found = difference_error(first, second, figure)
    assert found == pytest.approx((drawn[:, 0] - drawn[:, 1]).std(), rel=0.06)
    assert found < difference_error(first, figure=figure)


def test_a_suite_of_so_many_items_shows_the_difference():
    first, second = plain(), plain(knowledge="....")
    found = suite_resolution(first, [first, second])
    assert found.largest == pytest.approx(0.25 / 3) and found.paired
    assert found.smallest == pytest.approx(1.959964 * difference_error(first, second), rel=1e-6)
    assert found.needed == math.ceil(12 * (found.smallest / 0.02) ** 2) == 801
    assert found.blind
    assert str(found) == ("At 95 % the suite (12 items) cannot tell the models apart by Vers: it shows differences "
                          "from 0.163 on, and the largest seen is 0.083; to show 0.02 it would need about 810 items.")
    content = found.to_dict()
    assert content["sentence"] == str(found) and content["figure"] == "vers" and content["confidence"] == 0.95


def test_the_sentences_of_the_base_alone_and_of_a_suite_that_is_large_enough():
    alone = suite_resolution(plain(), figure="uni", confidence=0.9)
    assert not alone.paired and not alone.blind and alone.largest is None
    assert str(alone).startswith("At 90 % the suite (16 items) shows differences of Uni from 0.")
    assert "(less where two models err on the same items); to show 0.02 it would need about" in str(alone)
    large = suite_resolution(plain(), [plain(knowledge="xxxx")], wanted=0.2)
    assert str(large) == "At 95 % the suite (12 items) shows differences of Vers from 0.163 on."
    same = suite_resolution(plain(), [plain()])
    assert same.needed is None
    assert str(same).startswith("No item of the suite (12 items) tells the models apart by Vers; take items")


def test_other_suites_are_refused():
    other = plain()
    other = SuiteScores.of({**other.tasks, "knowledge": {"z": answers("x...")}})
    with pytest.raises(CofituneError, match="other tasks in the group knowledge"):
        difference_error(plain(), other)
