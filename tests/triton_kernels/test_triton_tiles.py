"""Where the programs of kernels/masked_adamw.py work, in matrices of any size: no memory of theirs is needed for it."""

from __future__ import annotations

import pytest
import torch

from cofitune_fast.ops import triton as loader

triton = pytest.importorskip("triton")
tl = triton.language
tile = loader.kernel("masked_adamw").tile


@triton.jit
def probe(elements, rows_found, columns_found, program: tl.int64, rows: tl.int64, columns: tl.int64,
          pieces_per_row: tl.int64, PIECES: tl.constexpr, WIDTH: tl.constexpr):
    piece, lane = tl.arange(0, PIECES), tl.arange(0, WIDTH)
    _, start, row, column, place, exists, inside = tile(program, rows, columns, pieces_per_row, PIECES, WIDTH)
    tl.store(elements + piece[:, None] * WIDTH + lane[None, :], start + place, mask=inside)
    tl.store(rows_found + piece, row, mask=exists)
    tl.store(columns_found + piece, column, mask=exists)


def found(device: str, program: int, rows: int, columns: int, pieces: int, width: int) -> list[torch.Tensor]:
    sizes = ((pieces, width), (pieces,), (pieces,))
    results = [torch.full(size, -1, dtype=torch.int64, device=device) for size in sizes]
    probe[(1,)](*results, program, rows, columns, -(-columns // width), PIECES=pieces, WIDTH=width)
    return [result.cpu() for result in results]


@pytest.mark.parametrize(("rows", "columns", "pieces", "width"), [
    (1, 2**31 - 1, 1, 1024),
    (1, 2**36 + 5, 4, 256),
    (2**31 + 3, 1, 8, 1),
    (3 * 10**9, 300, 8, 128),
    (5, 3 * 10**9 + 1, 2, 512),
    (50000, 151936, 1, 1024),
    (7, 5, 128, 8),
])
def test_elements_are_counted_in_64_bits(rows, columns, pieces, width, device):
    per_row = -(-columns // width)
    programs = -(-rows * per_row // pieces)
    for program in {0, min(1, programs - 1), programs // 2, programs - 1}:
        expected = torch.full((pieces, width), -1, dtype=torch.int64)
        places = torch.full((2, pieces), -1, dtype=torch.int64)
        for piece in range(pieces):
            row, column = divmod(program * pieces + piece, per_row)
            column *= width
            if row < rows:
                places[:, piece] = torch.tensor([row, column])
                here = min(width, columns - column)
                expected[piece, :here] = row * columns + column + torch.arange(here)
        elements, rows_found, columns_found = found(device, program, rows, columns, pieces, width)
        assert torch.equal(elements, expected)
        assert torch.equal(torch.stack([rows_found, columns_found]), places)
