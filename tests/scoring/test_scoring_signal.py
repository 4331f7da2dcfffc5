"""The early signal: its value and draws against the formula, and what it reads."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from cofitune_fast.data import Example
from cofitune_fast.scoring import DriftItem, ItemScore, Signal, Task, signal_tasks
from cofitune_fast.scoring.results import score_of
from cofitune_fast.scoring.signal import ROWS

ITEMS = [ItemScore(2.0, 4, False), ItemScore(9.0, 6, True), ItemScore(1.0, 2, False)]
OTHERS = [ItemScore(3.0, 3, False), ItemScore(5.0, 2, False)]
DRIFTS = [DriftItem(0.2, 4), DriftItem(0.1, 1)]


def make(items=ITEMS, drift=DRIFTS):
    return Signal({"a": score_of(items, "nll", ("nll",)), "b": score_of(OTHERS, "nll", ("nll",))},
                  score_of(drift, "kl", ("kl",)) if drift else None)


def test_it_is_the_mean_likelihood_less_the_drift():
    assert make().value == pytest.approx(-(12 / 12 + 8 / 5) / 2 - 0.3 / 5)
    assert make(drift=None).value == pytest.approx(-(1 + 1.6) / 2)
    parts = [make().nll["a"].se / 2, make().nll["b"].se / 2, make().drift.se]
    assert make().se == pytest.approx(math.hypot(*parts))


def test_models_on_the_same_items_share_the_draws():
    better = [ItemScore(item.nll - 0.5 * item.tokens, item.tokens, item.correct) for item in ITEMS]
    difference = make(better).resampled(500) - make().resampled(500)
    assert np.allclose(difference, 0.25)  # half a nat a token of one of two tasks, whichever items are drawn
    spread = make().resampled(4000).std()
    assert 0.5 * make().se < spread < 2 * make().se


def test_it_survives_json():
    again = Signal.from_dict(json.loads(json.dumps(make().to_dict())))
    assert again.value == make().value and np.array_equal(again.resampled(50), make().resampled(50))
    assert Signal.from_dict(json.loads(json.dumps(make(drift=None).to_dict()))).drift is None


def test_it_reads_few_rows_and_generates_nothing():
    rows = [Example([{"role": "user", "content": str(number)}], "x") for number in range(ROWS + 5)]
    (task,) = signal_tasks([Task("t", "response", rows, metric="bleu")])
    assert list(task.items) == rows[:ROWS] and not task.is_generated
    (same,) = signal_tasks([Task("t", "response", rows[:3], metric="exact")])
    assert same.metric == "exact" and len(same.items) == 3
