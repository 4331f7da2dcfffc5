"""Normalisers on hand-made values, the presets and the joining of importances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cofitune_fast.errors import CofituneError
from cofitune_fast.importance.normalize import PRESETS, Preset, abs_tanh_z, combine, fractional_rank, get_preset


def test_abs_tanh_z_by_hand():
    scores = torch.tensor([[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0]])  # mean 3, population variance 14 / 4
    std = math.sqrt(3.5)
    expected = [abs(math.tanh((score - 3) / std)) for score in (1, 2, 3, 6)]
    torch.testing.assert_close(abs_tanh_z(scores), torch.tensor([expected, [0.0] * 4]))


def test_abs_tanh_z_protects_the_least_as_the_most_important():
    low, _, high = abs_tanh_z(torch.tensor([0.0, 1.0, 2.0])).tolist()
    assert low == pytest.approx(high) and low > 0.8


def test_abs_tanh_z_ignores_the_scale_of_scores():
    scores = torch.tensor([[1.0, 2.0, 4.0, 9.0]])
    torch.testing.assert_close(abs_tanh_z(scores * 1e-25), abs_tanh_z(scores))
    assert abs_tanh_z(torch.full((1, 7), 0.1)).tolist() == [[0.0] * 7]  # 0.1 has no exact mean in floating point


def test_fractional_rank_by_hand():
    scores = torch.tensor([[0.4, 0.1, 9.0, 0.1, 0.2], [3.0, 3.0, 3.0, 3.0, 3.0]])
    expected = torch.tensor([[0.75, 0.125, 1.0, 0.125, 0.5], [0.5] * 5])
    torch.testing.assert_close(fractional_rank(scores), expected)
    assert fractional_rank(torch.tensor([[4.0]])).tolist() == [[0.0]]


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=30))
def test_normalizers_stay_in_bounds_and_ranks_are_monotone(values):
    scores = torch.tensor(values)
    for normalizer in (abs_tanh_z, fractional_rank):
        importance = normalizer(scores)
        assert importance.dtype == torch.float32 and importance.shape == scores.shape
        assert ((importance >= 0) & (importance <= 1)).all()
    ranks = fractional_rank(scores)
    assert ((ranks[:, None] > ranks[None, :]) == (scores[:, None] > scores[None, :])).all()


def test_presets():
    assert (PRESETS["paper"].normalizer, PRESETS["paper"].down) == (abs_tanh_z, "output")
    assert (PRESETS["rank"].normalizer, PRESETS["rank"].down) == (fractional_rank, "neuron")
    assert (PRESETS["rank-output"].normalizer, PRESETS["rank-output"].down) == (fractional_rank, "output")
    own = Preset("own", torch.sigmoid, "neuron")
    assert get_preset(own) is own
    with pytest.raises(CofituneError, match=r"'papr' is not known; did you mean 'paper'\? Known are: paper, rank, "):
        get_preset("papr")


def test_combine_is_the_element_wise_maximum():
    first, second = torch.tensor([[0.1, 0.9]]), torch.tensor([[0.4, 0.2]])
    assert combine([first, second]).tolist() == torch.tensor([[0.4, 0.9]]).tolist()
    with pytest.raises(CofituneError, match="no importance to combine"):
        combine([])
    with pytest.raises(CofituneError, match=r"different shapes cannot be combined \(\(1, 2\), \(2,\)\)"):
        combine([first, second[0]])
