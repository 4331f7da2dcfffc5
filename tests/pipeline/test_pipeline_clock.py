"""The time that is left, from the work that is left."""

from __future__ import annotations

import time

import pytest

from cofitune_fast.pipeline.clock import Clock


@pytest.fixture
def clock(monkeypatch):
    """A clock of three jobs; `clock.do(job, seconds)` runs one of them in no time."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock({"small": 1.0, "large": 4.0, "last": 2.0})

    def do(job, seconds):
        clock.start(job)
        now[0] += seconds
        clock.finish(job)

    clock.do = do
    return clock


def test_nothing_is_known_before_the_first_job_is_finished(clock):
    assert clock.remaining is None
    clock.start("small")
    assert clock.remaining is None


def test_the_seconds_per_weight_are_those_of_all_finished_jobs(clock):
    clock.do("small", 3)
    assert clock.remaining == 3 * (4 + 2)
    clock.do("large", 7)  # 10 seconds for a weight of 5
    assert clock.remaining == 2 * 2
    clock.do("last", 1)
    assert clock.remaining == 0


def test_a_job_waits_until_it_is_finished(clock):
    clock.do("small", 1)
    clock.start("large")
    assert clock.remaining == 6


def test_the_end_of_a_job_that_was_not_begun_changes_no_rate(clock):
    clock.do("small", 1)
    clock.start("large")
    clock.finish("last")
    assert clock.remaining == 4  # 1 second for a weight of 1, as before


def test_a_job_without_a_weight_does_not_count(clock):
    clock.do("base", 50)
    clock.do("small", 3)
    assert clock.remaining == 3 * 6
