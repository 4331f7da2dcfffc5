"""The time that is left, from the work that is left."""

from __future__ import annotations

import pytest

from cofitune_fast.pipeline.clock import Clock
from cofitune_fast.search import Operations, Pace

WAITING = {"base": Operations(scoring=2.0), "small": Operations(1.0, 2.0, 1), "large": Operations(4.0, 2.0, 1)}


@pytest.fixture
def clock():
    return Clock(dict(WAITING))


def cost(training, scoring, **more):
    return {"training_seconds": training, "scoring_seconds": scoring, **more}


def test_nothing_is_said_before_a_training_was_measured(clock):
    assert clock.remaining is None
    clock.finish("base", cost(0, 6))  # 3 s per operation of scoring
    assert clock.remaining is None
    clock.finish("small", cost(10, 6))
    assert clock.remaining == pytest.approx(4 * 10 + 2 * 3)
    clock.finish("large", cost(40, 6))
    assert clock.remaining == 0


def test_what_a_job_takes_beside_its_steps_counts_once_for_each_job(clock):
    clock.search = Pace(training=2.0, scoring=1.0, beside=5.0)
    assert clock.remaining == pytest.approx((1 + 4) * 2 + 6 * 1 + 2 * 5)
    clock.finish("base", cost(0, 2))
    clock.finish("small", cost(10, 2, steady_seconds=7))  # 7 s per operation, and 3 s beside
    assert clock.remaining == pytest.approx(4 * 7 + 2 * 1 + 3)


def test_a_failed_job_and_one_that_does_not_wait_change_no_pace(clock):
    clock.search = Pace(training=2.0, scoring=1.0)
    clock.finish("small")
    clock.finish("importance", cost(99, 99))
    assert clock.remaining == pytest.approx(4 * 2 + 4 * 1)


def test_the_pace_of_several_jobs_is_their_sum():
    pace = Pace.of([(Operations(scoring=4.0), cost(50, 8)), (Operations(2.0, 1.0, 1), cost(9, 2, steady_seconds=6)),
                    (Operations(1.0, 1.0, 1), cost(3, 2))])  # the last does not say what its steps took
    assert pace == Pace(9 / 3, 12 / 6, 3 / 2)
    assert Operations(2.0, 1.0, 1).less(Operations(3.0, 0.5, 1)) == Operations(0.0, 0.5, 0)
    assert Pace(scoring=2.0).seconds(Operations(scoring=3.0)) == 6 and Pace().seconds(Operations()) == 0
