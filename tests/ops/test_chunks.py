"""How matrices are cut into chunks for threads: every element is in exactly one, at sizes that no memory holds too."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.ops_cases import needs_native

from cofitune_fast.ops import native

pytestmark = needs_native
TARGETS = [256, 1 << 15, 1 << 17]


def chunk(index: int, rows: int, columns: int, target: int) -> tuple[int, int, int, int]:
    return tuple(native.library().chunk(index, rows, columns, target))


def count(rows: int, columns: int, target: int) -> int:
    return native.library().chunk_count(rows, columns, target)


@settings(max_examples=200, deadline=None)
@given(rows=st.integers(0, 60), columns=st.integers(0, 700), target=st.sampled_from([256, 512]))
def test_small_matrices_are_partitioned(rows, columns, target):
    seen = [[0] * columns for _ in range(rows)]
    for index in range(count(rows, columns, target)):
        row, row_end, column, column_end = chunk(index, rows, columns, target)
        for r in range(row, row_end):
            for c in range(column, column_end):
                seen[r][c] += 1
    assert all(times == 1 for row in seen for times in row)


def assert_partition(rows: int, columns: int, target: int, indices) -> None:
    """Chunk by chunk in row-major order: the first begins at the origin, each where the one before ended, and the last
    ends at the end; none is empty, too large, across the end of a row, or begins within a block of 256."""
    chunks = count(rows, columns, target)
    assert chunk(0, rows, columns, target)[::2] == (0, 0)
    assert chunk(chunks - 1, rows, columns, target)[1::2] == (rows, columns)
    for index in indices:
        row, row_end, column, column_end = chunk(index, rows, columns, target)
        assert 0 <= row < row_end <= rows and 0 <= column < column_end <= columns
        assert (row_end - row) * (column_end - column) <= target
        assert column % 256 == 0 and (row_end == row + 1 or (column, column_end) == (0, columns))
        if index + 1 < chunks:
            after = chunk(index + 1, rows, columns, target)
            assert after[::2] == ((row, column_end) if column_end < columns else (row_end, 0))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("rows", "columns"), [
    (1, 2**31 + 1), (2**31 + 1, 1), (1, 2**40 - 1), (2**40 + 7, 3), (70_000, 70_001), (2**16 + 1, 2**16 + 255),
    (3, 2**33 + 17), (2**33, 255), (2**33, 257), (2**20, 2**20), (152_064, 8192 * 8),
])
def test_sizes_beyond_32_bits_are_partitioned(rows, columns, target):
    chunks = count(rows, columns, target)
    assert chunks >= rows * columns / target
    picks = random.Random(rows).sample(range(min(chunks, 2**62)), 200)
    near = {index for power in (31, 32) for index in range(2**power // target - 3, 2**power // target + 3)}
    assert_partition(rows, columns, target, sorted({*picks, *(i for i in near if i < chunks), 0, chunks - 1}))


@settings(max_examples=200, deadline=None)
@given(rows=st.integers(1, 2**31), columns=st.integers(1, 2**31), target=st.sampled_from(TARGETS),
       place=st.floats(0, 1))
def test_any_size_is_partitioned(rows, columns, target, place):
    last = count(rows, columns, target) - 1
    assert_partition(rows, columns, target, {0, last, min(last, int(place * last))})
