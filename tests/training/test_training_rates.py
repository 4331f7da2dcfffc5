"""The learning rate of a run that names none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tiny import make_tiny_model

from cofitune_fast.data import Encoded
from cofitune_fast.regions import BaseInfo, Region
from cofitune_fast.training import train_region, with_learning_rate


def model(hidden):
    config = SimpleNamespace(hidden_size=hidden)
    return SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config))


@pytest.mark.parametrize(("hidden", "full", "rate"), [
    (576, False, 4e-4), (576, True, 1e-4), (64, False, 4e-4), (1152, False, 2e-4), (4096, False, 5.6e-5),
    (5120, False, 4.5e-5), (5120, True, 1.1e-5),
])
def test_the_rate_shrinks_with_the_width(hidden, full, rate):
    assert with_learning_rate({"seed": 3}, model(hidden), full=full) == {"seed": 3, "learning_rate": rate}


def test_a_rate_that_is_given_stays():
    given = {"learning_rate": 0.5}
    assert with_learning_rate(given, model(5120), full=False) == given
    assert with_learning_rate({}, make_tiny_model(), full=True) == {"learning_rate": 1e-4}


@pytest.mark.parametrize(("region", "rate"), [("ffn.up@2-3", 4e-4), ("full", 1e-4)])
def test_a_run_without_a_rate_takes_it(tmp_path, region, rate):
    tiny, rows = make_tiny_model(), [Encoded([5, 6, 7, 8], 2), Encoded([5, 9, 10], 1)]
    result = train_region(tiny, Region.parse(region), rows, tmp_path, {"max_steps": 1}, base=BaseInfo.of(tiny, "tiny"),
                          pad_token_id=0)
    assert result.learning_rate == rate
