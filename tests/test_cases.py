"""The choice of cases: every pair meets, marks stay, and the full matrix is there when it is asked for."""

from __future__ import annotations

from itertools import combinations, product

import cases
import pytest
from hypothesis import given
from hypothesis import strategies as st


def rows(mark):
    """(names, [values of each case]) of a parametrize mark."""
    names, params = mark.args
    return names, [param.values for param in params]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_every_pair_meets(sizes):
    values = {f"p{index}": range(size) for index, size in enumerate(sizes)}
    names, found = rows(cases.pairwise(values))
    assert names == list(values)
    for one, other in combinations(range(len(sizes)), 2):
        assert {(row[one], row[other]) for row in found} == set(product(range(sizes[one]), range(sizes[other])))
    if len(sizes) == 1:
        assert found == [(value,) for value in range(sizes[0])]


@pytest.mark.parametrize(("sizes", "most"), [((5, 9, 2, 2), 50), ((5, 9, 4, 3), 55), ((4, 3), 12), ((2,) * 8, 10)])
def test_they_are_few_and_always_the_same(sizes, most):
    values = {f"p{index}": range(size) for index, size in enumerate(sizes)}
    found = rows(cases.pairwise(values))
    assert len(set(found[1])) == len(found[1]) <= most
    assert rows(cases.pairwise(values)) == found


def test_every_value_is_there_once():
    names, found = rows(cases.each({"a": "xyz", "b": [1, 2]}))
    assert (names, found) == (["a", "b"], [("x", 1), ("y", 2), ("z", 1)])


def test_the_full_matrix(monkeypatch):
    monkeypatch.setattr(cases, "FULL", True)
    for choose in (cases.pairwise, cases.each):
        assert rows(choose({"a": "xyz", "b": [1, 2], "c": [3, 4]}))[1] == list(product("xyz", [1, 2], [3, 4]))


def test_values_of_several_names_and_marks_are_taken_as_pytest_takes_them():
    marked = pytest.param("cuda", marks=pytest.mark.gpu)
    mark = cases.pairwise({"layout, dtype": [("row", 1), ("none", 0)], "device": ["cpu", marked]})
    assert mark.args[0] == ["layout", "dtype", "device"]
    by_id = {param.id: (param.values, [m.name for m in param.marks]) for param in mark.args[1]}
    assert by_id["row-1-cpu"] == (("row", 1, "cpu"), []) and by_id["none-0-cuda"] == (("none", 0, "cuda"), ["gpu"])
    assert len(by_id) == 4
