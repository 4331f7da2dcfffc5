"""A method's frontier on the plane of speciality and versatility, and the values between its points.

The *frontier* is the upper-right hull of a method's points and the base, which every method reaches with rate 0. A
place between two neighbours is reached at least in the mean, by answering with either model in turn (the argument of
Provost and Fawcett, Machine Learning 42, 2001, for ROC curves). A run at a rate between them, or their interpolated
weights, usually does better, so the straight line is a cautious estimate. Left of its highest point the frontier is
level, because less speciality need not cost versatility.

The validation part decides which points are on the hull. So a method with many points (rates times alphas) cannot win
by picking lucky ones. On the test part the frontier is the hull of these points. With one rate there is one point
beside the base.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np


def hull(spec: Sequence[float], versatility: Sequence[float]) -> list[int]:
    """Return the indices of the upper-right hull's corners, by rising speciality; of equal points the first."""
    order = sorted(range(len(spec)), key=lambda index: (-spec[index], -versatility[index], index))
    corners: list[int] = []
    for index in order:
        if corners and versatility[index] <= versatility[corners[-1]]:
            continue
        while len(corners) > 1 and _above(spec, versatility, corners[-2], corners[-1], index):
            corners.pop()
        corners.append(index)
    return corners[::-1]


def _above(x: Sequence[float], y: Sequence[float], right: int, middle: int, left: int) -> bool:
    """True if the line from `left` to `right` passes above or through `middle`."""
    return (y[middle] - y[left]) * (x[right] - x[left]) <= (y[right] - y[left]) * (x[middle] - x[left])


def versatility_at(spec: np.ndarray, versatility: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the frontier's versatility at a speciality, float64 [draws].

    It is the maximum of the versatility of corners at or beyond the target, and of the lines that cross the target
    between two corners. So a validation corner that lies inside the hull on the test part lowers nothing. Where no
    corner reaches the target, the line through the last two corners is extended. Only single draws need this, because
    the estimate decides whether a method reaches a target.

    Args:
        spec, versatility: [draws, corners], corners in any order.
        target: [draws].
    """
    order = np.argsort(spec, axis=1, kind="stable")
    x, y = np.take_along_axis(spec, order, 1), np.take_along_axis(versatility, order, 1)
    if x.shape[1] == 1:
        return y[:, 0].copy()
    beyond = x >= target[:, None]
    level = np.where(beyond, y, -np.inf).max(axis=1)
    lines = _at(x[:, :, None], y[:, :, None], x[:, None, :], y[:, None, :], target[:, None, None])
    crossed = np.where(~beyond[:, :, None] & beyond[:, None, :], lines, -np.inf).max(axis=(1, 2))
    further = _at(x[:, -2], y[:, -2], x[:, -1], y[:, -1], target)
    return np.where(beyond.any(axis=1), np.maximum(level, crossed), further)


def supports(spec: Sequence[float], versatility: Sequence[float], target: float) -> list[int]:
    """Return the one or two corners that determine `versatility_at` the target, by rising speciality.

    Where no corner reaches the target, these are the last two.
    """
    order = sorted(range(len(spec)), key=lambda index: spec[index])
    beyond = [index for index in order if spec[index] >= target]
    if not beyond:
        return order[-2:]
    pairs = itertools.product([index for index in order if spec[index] < target], beyond)
    crossings = {(left, right): float(_at(*(np.array(value) for value in (
        spec[left], versatility[left], spec[right], versatility[right], target)))) for left, right in pairs}
    heights = crossings | {(index,): versatility[index] for index in beyond}
    return list(max(heights, key=lambda corners: heights[corners]))


def _at(
    x_left: np.ndarray, y_left: np.ndarray, x_right: np.ndarray, y_right: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Evaluate lines through two points at `target`; where both have the same x, the left point's height."""
    width, rise = np.broadcast_arrays(x_right - x_left, y_right - y_left)
    slope = np.divide(rise, width, out=np.zeros(width.shape), where=width != 0)
    return y_left + slope * (target - x_left)


def mean_loss(
    spec: np.ndarray, versatility: np.ndarray, base_spec: np.ndarray, base_versatility: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Return the mean versatility lost between the base's speciality and the target, float64 [draws].

    It is the area between the base's level and the frontier divided by its width. The result is exact, because both are
    piecewise linear.
    """
    ends = np.stack([np.minimum(base_spec, target), target], axis=1)
    knots = np.sort(np.concatenate([np.clip(spec, ends[:, :1], ends[:, 1:]), ends], axis=1), axis=1)
    lost = base_versatility[:, None] - np.stack(
        [versatility_at(spec, versatility, knots[:, place]) for place in range(knots.shape[1])], axis=1
    )
    width = ends[:, 1] - ends[:, 0]
    area = (np.diff(knots, axis=1) * (lost[:, 1:] + lost[:, :-1]) / 2).sum(axis=1)
    return np.divide(area, width, out=lost[:, -1].copy(), where=width > 0)
