"""The frontier by hand and against slow, plain ways to the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from cofitune_fast.compare.curves.frontier import hull, mean_loss, supports, versatility_at


def test_the_hull_by_hand():
    #        base  under the line  corner  dominated  corner  same as the last
    spec = [0.1, 0.2, 0.3, 0.25, 0.4, 0.4]
    vers = [0.60, 0.58, 0.59, 0.50, 0.50, 0.50]
    assert hull(spec, vers) == [0, 2, 4]
    assert hull([0.3], [0.5]) == [0]
    assert hull([0.1, 0.3], [0.5, 0.6]) == [1]  # better in both: the base is not on it
    assert hull([0.25, 0.5, 0.75], [0.5, 0.25, 0.0]) == [0, 2]  # on the line: no corner


@pytest.mark.parametrize("seed", range(30))
def test_the_hull_lies_on_or_above_every_point_and_every_mixture(seed):
    draw = np.random.default_rng(seed)
    spec, vers = draw.integers(0, 12, (2, draw.integers(1, 12))) / 12
    corners = hull(spec, vers)
    assert sorted(spec[corners]) == list(spec[corners]) and len(set(corners)) == len(corners)
    curve = lambda x: np.interp(x, spec[corners], vers[corners])  # noqa: E731
    share = draw.random((200, 1))
    first, second = draw.integers(0, len(spec), (2, 200))
    mixed = share[:, 0] * spec[first] + (1 - share[:, 0]) * spec[second]
    height = share[:, 0] * vers[first] + (1 - share[:, 0]) * vers[second]
    assert (curve(mixed) >= height - 1e-12).all()
    assert spec[corners[-1]] == spec.max() and vers[corners[0]] == vers.max()


def test_versatility_between_left_and_right_of_the_corners():
    spec, vers = np.array([[0.3, 0.1, 0.2]]), np.array([[0.40, 0.60, 0.55]])  # in any order

    def at(x):
        return versatility_at(spec, vers, np.array([x]))[0]

    assert at(0.15) == pytest.approx(0.575)
    assert at(0.25) == pytest.approx(0.475)
    assert [at(0.1), at(0.2), at(0.3)] == pytest.approx([0.60, 0.55, 0.40])
    assert at(0.0) == pytest.approx(0.60)  # level
    assert at(0.32) == pytest.approx(0.37)  # the last line goes on
    assert versatility_at(spec[:, :1], vers[:, :1], np.array([0.9]))[0] == 0.40


def on_the_hull(spec, vers, target):
    corners = hull(spec, vers)
    return np.interp(target, spec[corners], vers[corners])


def test_a_corner_within_the_hull_of_the_others_takes_nothing_from_them():
    spec, vers = np.array([[0.1, 0.25, 0.3]]), np.array([[0.6, 0.1, 0.5]])
    assert versatility_at(spec, vers, np.array([0.2]))[0] == pytest.approx(0.55)
    assert versatility_at(spec, vers, np.array([0.25]))[0] == pytest.approx(0.525)


def test_every_draw_has_its_own_hull():
    draw = np.random.default_rng(0)
    spec, vers = draw.random((50, 5)), draw.random((50, 5))
    target = np.array([draw.uniform(row.min(), row.max()) for row in spec])
    found = versatility_at(spec, vers, target)
    for row in range(50):
        assert found[row] == pytest.approx(on_the_hull(spec[row], vers[row], target[row]), rel=1e-12)


def test_corners_of_the_same_speciality_do_no_harm():
    assert np.isfinite(versatility_at(np.array([[0.2, 0.2]]), np.array([[0.5, 0.4]]), np.array([0.3]))).all()


def test_the_mean_loss_by_hand():
    # From the base (0.1, 0.6) to (0.3, 0.5): a loss of 0.1 at the end, of 0.05 in the mean; the same at half the way.
    spec, vers = np.array([[0.1, 0.3]]), np.array([[0.6, 0.5]])
    base = np.array([0.1]), np.array([0.6])
    assert mean_loss(spec, vers, *base, np.array([0.3]))[0] == pytest.approx(0.05)
    assert mean_loss(spec, vers, *base, np.array([0.2]))[0] == pytest.approx(0.025)
    # A method better than the base up to 0.2, then falling to its level at 0.3: -(0.04 + 0.02) / 2.
    spec, vers = np.array([[0.2, 0.3]]), np.array([[0.64, 0.60]])
    assert mean_loss(spec, vers, *base, np.array([0.3]))[0] == pytest.approx(-0.03)
    assert mean_loss(spec, vers, *base, np.array([0.1]))[0] == pytest.approx(-0.04)  # no width: the loss there


def test_the_mean_loss_is_the_integral():
    draw = np.random.default_rng(1)
    for _ in range(20):
        spec, vers = np.sort(draw.random((1, 4))), draw.random((1, 4))
        base, target = spec[:, 0] * 0.9, spec[:, 0] + 0.8 * np.ptp(spec)
        fine = np.linspace(base[0], target[0], 20001)
        loss = 0.5 - on_the_hull(spec[0], vers[0], fine)
        integral = ((loss[1:] + loss[:-1]) / 2).mean()
        assert mean_loss(spec, vers, base, np.array([0.5]), target)[0] == pytest.approx(integral, abs=1e-6)


def test_the_versatility_comes_from_the_corners_that_support_it():
    generator = np.random.default_rng(5)
    counts = [0, 0]
    for _ in range(200):
        spec, vers = generator.random((2, 5))
        target = generator.uniform(0.2, 0.6)
        own = supports(spec, vers, target)
        counts[len(own) - 1] += 1
        by_hand = np.interp(target, spec[own], vers[own])
        if max(spec) >= target:
            assert versatility_at(spec[None], vers[None], np.array([target]))[0] == pytest.approx(by_hand)
    assert min(counts) > 20  # both a single corner and a line between two
    assert supports([0.3, 0.1, 0.2], [0.5, 0.7, 0.6], 0.4) == [2, 0]
