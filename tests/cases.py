"""Which cases of a test run: a few that make every pair of values meet, or all of them under COFITUNE_TEST=full.

Most faults need one value, or two together. So a test of five parameters needs no case for every combination, but one
for every pair; `pairwise` picks them, always the same. Combinations of three and more are left to the tests with
hypothesis, and to `make test-full`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, cycle, islice, product
from typing import Any

import pytest

FULL = os.environ.get("COFITUNE_TEST") == "full"
GPU_ARCHITECTURES = ("sm_80", "sm_90", "sm_100") if FULL else ("sm_90",)
"""Architectures that kernels are compiled for, which takes a minute for each."""


def pairwise(values: Mapping[str, Iterable[Any]]) -> pytest.MarkDecorator:
    """Parametrize a test so that every two values of different parameters meet in at least one case.

    values: what each parameter may be, by its name. As in pytest, a name may be several, "layout, dtype" with tuples,
    and a value may be a `pytest.param` with marks.
    """
    lists = [list(those) for those in values.values()]
    rows = product(*lists) if FULL else _pairs_met(lists)
    return _parametrize(list(values), rows)


def each(values: Mapping[str, Iterable[Any]]) -> pytest.MarkDecorator:
    """Parametrize a test so that every value is in at least one case: for parameters that do not act on each other."""
    lists = [list(those) for those in values.values()]
    most = max(map(len, lists))
    rows = product(*lists) if FULL else zip(*(islice(cycle(those), most) for those in lists), strict=True)
    return _parametrize(list(values), rows)


def _pairs_met(lists: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Rows of one value per list, greedily: each takes up a pair that has not met, and then what adds most."""
    if len(lists) == 1:
        return [(value,) for value in lists[0]]
    places = [[(index, at) for at in range(len(those))] for index, those in enumerate(lists)]
    missing = dict.fromkeys(pair for two in combinations(places, 2) for pair in product(*two))  # keeps its order
    rows = []
    while missing:
        chosen = dict(next(iter(missing)))

        def gain(place: tuple[int, int], chosen: Mapping[int, int] = chosen) -> int:
            return sum(tuple(sorted((place, other))) in missing for other in chosen.items())

        for index, candidates in enumerate(places):
            if index not in chosen:
                chosen[index] = max(candidates, key=gain)[1]
        for pair in combinations(sorted(chosen.items()), 2):
            missing.pop(pair, None)
        rows.append(tuple(those[chosen[index]] for index, those in enumerate(lists)))
    return rows


def _parametrize(names: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> pytest.MarkDecorator:
    apart = [[name.strip() for name in together.split(",")] for together in names]
    cases = []
    for row in rows:
        flat, marks = [], []
        for those, value in zip(apart, row, strict=True):
            if isinstance(value, type(pytest.param())):
                marks += value.marks
                flat += value.values
            else:
                flat += value if len(those) > 1 else [value]
        cases.append(pytest.param(*flat, marks=marks, id="-".join(map(_word, flat))))
    return pytest.mark.parametrize([name for those in apart for name in those], cases)


def _word(value: Any) -> str:
    return getattr(value, "__name__", str(value)).removeprefix("torch.")
