"""Limits of memory and time: what fits, what is said of the rest, and the nearest where nothing fits."""

from __future__ import annotations

import pytest

from cofitune_fast.errors import CofituneError
from cofitune_fast.search.limits import Limits, Need, fitting, nothing_fits

GIB = 2**30


@pytest.mark.parametrize(("limits", "excess", "words"), [
    (Limits(), 0.0, ""),
    (Limits(memory=2 * GIB), 1.5, "3.00 GiB"),
    (Limits(time=0.4), 2.0, "0.80 of full SFT's time"),
    (Limits(memory=6 * GIB, time=0.8), 1.0, "3.00 GiB and 0.80 of full SFT's time"),
])
def test_the_excess_is_that_of_the_scarcer_resource(limits, excess, words):
    need = Need(0.8, 3 * GIB)
    assert limits.excess(need) == pytest.approx(excess) and limits.describe(need) == words


def test_a_time_by_default_leaves_at_least_the_cheapest():
    needs = {"a": Need(1.4, 3 * GIB), "b": Need(1.2, 4 * GIB), "c": Need(1.6, 2 * GIB)}
    assert fitting(Limits(time=1.5), needs) == ["a", "b"] and fitting(Limits(time=1.0), needs) == []
    assert fitting(Limits(time=1.0, asked=False), needs) == ["b"]
    assert fitting(Limits(3 * GIB, 1.0, asked=False), needs) == ["a"]
    assert fitting(Limits(GIB, 1.0, asked=False), needs) == []


def test_a_space_that_does_not_fit_names_the_nearest():
    needs = [("a", Need(0.9, 3 * GIB)), ("b", Need(0.6, 4 * GIB))]
    error = nothing_fits(Limits(2 * GIB, 0.5), needs)
    assert isinstance(error, CofituneError)
    words = "nearest is a, which needs 3.00 GiB and 0.90 of full SFT's time: raise search.budget_memory to 3.00 GiB"
    assert f"{words} and search.budget_time to 0.90, or" in str(error)
    only = str(nothing_fits(Limits(2 * GIB, 1.0, asked=False), needs))
    assert "which needs 3.00 GiB: raise search.budget_memory to 3.00 GiB, or" in only
    assert Limits(time=0.5).describe(Need(0.9111)) == "0.92 of full SFT's time"  # so that this is enough
    assert Limits(memory=1).describe(Need(0.5, 24)) == "24.00 B"
