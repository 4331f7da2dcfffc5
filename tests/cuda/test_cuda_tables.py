"""The arithmetic of csrc/cuda on the host: which block works on what, at sizes that no memory holds, and the shorter
ways to the same codes."""

from __future__ import annotations

import ctypes
import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BLOCK_LIMIT = 2**31 - 1
TARGET = 8192
any_case = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass
class Launch:
    blocks: int
    rows: list[int]  # of the tensors in it
    first_block: list[int]


def chunks(rows: int, columns: int) -> int:
    """As csrc/include/cofitune/chunks.h, which has its own tests, says."""
    if rows == 0 or columns == 0:
        return 0
    return rows * -(-columns // TARGET) if columns > TARGET else -(-rows // (TARGET // columns))


def launches(probe, matrices: list[tuple[int, int]], limit: int = BLOCK_LIMIT) -> list[Launch] | None:
    """The launches of a list in tables of four tensors; None if the list is refused."""
    numbers = ctypes.c_int64 * max(len(matrices), 1)
    result = (ctypes.c_int64 * (10 * len(matrices) + 10))()
    probe.launches.restype = ctypes.c_int64
    count = probe.launches(numbers(*(rows for rows, _ in matrices)), numbers(*(columns for _, columns in matrices)),
                           ctypes.c_int64(len(matrices)), ctypes.c_int64(TARGET), ctypes.c_int64(limit), result)
    if count < 0:
        return None
    records = [list(result[10 * i:10 * i + 10]) for i in range(count)]
    return [Launch(blocks, pairs[0:2 * tensors:2], pairs[1:2 * tensors:2]) for blocks, tensors, *pairs in records]


def tensor_of(probe, first_block: list[int], block: int) -> int:
    return probe.tensor_of((ctypes.c_uint32 * len(first_block))(*first_block), len(first_block), ctypes.c_uint32(block))


def assert_in_order(found: list[Launch], matrices: list[tuple[int, int]], limit: int = BLOCK_LIMIT) -> None:
    """Every tensor that has chunks is in one launch, in order, and has as many blocks as chunks."""
    expected = [(rows, chunks(rows, columns)) for rows, columns in matrices if chunks(rows, columns)]
    seen = []
    for launch in found:
        assert 0 < launch.blocks <= limit and 0 < len(launch.rows) <= 4 and launch.first_block[0] == 0
        ends = [*launch.first_block[1:], launch.blocks]
        seen += [(rows, end - first) for rows, first, end in zip(launch.rows, launch.first_block, ends, strict=True)]
    assert seen == expected


@any_case
@given(matrices=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 2**20)), max_size=12))
def test_every_chunk_has_a_block(probe, matrices):
    assert_in_order(launches(probe, matrices), matrices)


def test_more_blocks_than_a_launch_may_have_make_further_launches(probe):
    matrices = [(2**30, TARGET), (2**30, 5000), (1, 1), (2**31 - 1, TARGET), (7, 3 * TARGET + 1)]
    found = launches(probe, matrices)
    assert_in_order(found, matrices)
    assert [launch.blocks for launch in found] == [2**30, 2**30 + 1, 2**31 - 1, 28]


def test_a_tensor_of_too_many_chunks_is_refused(probe):
    assert launches(probe, [(2**31, TARGET)]) is None
    assert launches(probe, [(4, TARGET), (5, TARGET)], limit=4) is None


@any_case
@given(sizes=st.lists(st.integers(1, 2**31 // 300), min_size=1, max_size=300), seed=st.integers())
def test_a_block_finds_its_tensor(probe, sizes, seed):
    first_block = [sum(sizes[:i]) for i in range(len(sizes))]
    generator = random.Random(seed)
    for index in generator.sample(range(len(sizes)), min(5, len(sizes))):
        for block in (first_block[index], first_block[index] + sizes[index] - 1):
            assert tensor_of(probe, first_block, block) == index


@pytest.fixture(scope="module")
def values() -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 of every exponent and near every code's ends, and 16 random bits for each, their extremes included."""
    generator = torch.Generator().manual_seed(0)
    anything = torch.randint(0, 2**31, (400_000,), generator=generator).int()
    codes = torch.arange(0x38000000 - (70 << 23), 0x3F900000, 1 << 20, dtype=torch.int64)
    near = (codes[:, None] + torch.arange(-20, 21)).flatten().int()
    bits = torch.cat([anything, near, torch.tensor([0, 1, 0x7F800000, 0x7FC00000, 0x3FF00000, 0x3FF00001]).int()])
    random16 = torch.randint(0, 2**16, bits.shape, generator=generator).int()
    extremes = torch.tensor([0, 0xFFFF]).int().repeat_interleave(len(bits))
    return torch.cat([bits, bits, bits]).view(torch.float32), torch.cat([random16, extremes])


def wrong(function, values: tuple[torch.Tensor, torch.Tensor], sign: int = 1) -> int:
    x, random16 = values[0] * sign, values[1]
    function.restype = ctypes.c_int64
    return function(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(random16.data_ptr()), ctypes.c_int64(len(x)))


def test_fewer_instructions_encode_alike(probe, values):
    assert wrong(probe.wrong_encodes, values) == 0


def test_fewer_instructions_decode_alike(probe):
    assert probe.wrong_decode() == -1


@pytest.mark.parametrize("sign", [1, -1])
def test_fewer_instructions_round_alike(probe, values, sign):
    assert wrong(probe.wrong_roundings, values, sign) == 0
