"""grad_norm in Triton: sums of squares in fixed pieces, and row dots of weights and gradients in the same pass.

Every piece (32768 elements, or a row where row dots are wanted) leaves one float32 number in a buffer, which torch then
adds up in float64. Pieces do not depend on the device, and nothing is added atomically: the same gradients give the
same bits. The square of a float32 overflows from 1.8e19 on; such a gradient makes the result inf.

Loops to a bound known at run time are `while` loops: Triton's interpreter cannot take such a bound for `range` with
NumPy 2.4.
"""

import torch
import triton
import triton.language as tl

PIECE = 32768
BLOCK = 4096  # 32 elements per thread with 4 warps, so that four 16-byte loads of bfloat16 are in flight
ROW_BYTES = 4096  # bytes of the wider tensor read at a time, so that both together have at most four loads in flight


@triton.jit(do_not_specialize=["first", "size"])
def squares_kernel(sums, grad, first, size: tl.int64, PIECE: tl.constexpr, BLOCK: tl.constexpr):
    """Compute sums[first + piece] = sum of squares of a piece of `grad`, which has `size` elements."""
    piece = tl.program_id(0)
    begin = piece.to(tl.int64) * PIECE
    grad += begin
    end = tl.minimum(size - begin, PIECE).to(tl.int32)
    # Whole blocks are read without a mask, because a mask by any size would make the loads narrow.
    whole = end // BLOCK * BLOCK
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    start = 0
    while start < whole:
        value = tl.load(grad + start + lanes).to(tl.float32)
        total += value * value
        start += BLOCK
    if whole < end:
        value = tl.load(grad + whole + lanes, mask=whole + lanes < end, other=0).to(tl.float32)
        total += value * value
    tl.store(sums + first + piece, tl.sum(total))


@triton.jit(do_not_specialize=["first"])
def rows_kernel(sums, dots, weight, grad, first, columns, BLOCK: tl.constexpr):
    """Compute sums[first + row] = sum of grad^2 and dots[row] = sum of weight * grad over a row."""
    row = tl.program_id(0)
    begin = row.to(tl.int64) * columns
    lanes = tl.arange(0, BLOCK)
    square = tl.zeros([BLOCK], tl.float32)
    dot = tl.zeros([BLOCK], tl.float32)
    start = 0
    while start < columns:
        here = start + lanes < columns
        g = tl.load(grad + begin + start + lanes, mask=here, other=0).to(tl.float32)
        w = tl.load(weight + begin + start + lanes, mask=here, other=0).to(tl.float32)
        square += g * g
        dot += w * g
        start += BLOCK
    tl.store(sums + first + row, tl.sum(square))
    tl.store(dots + row, tl.sum(dot))


def row_block(weight: torch.dtype, grad: torch.dtype) -> int:
    """Return the number of elements of a row that a program reads at a time."""
    return ROW_BYTES // max(weight.itemsize, grad.itemsize)


def sum_of_squares(grads: list[torch.Tensor]) -> torch.Tensor:
    """Sum the squares of all elements of contiguous float32 or bfloat16 tensors: float64 0-d on their device."""
    pieces = [triton.cdiv(grad.numel(), PIECE) for grad in grads]
    if not any(pieces):
        return torch.zeros((), dtype=torch.float64, device=grads[0].device if grads else None)
    sums = torch.empty(sum(pieces), device=grads[0].device)
    first = 0
    with torch.cuda.device_of(sums):
        for grad, count in zip(grads, pieces, strict=True):
            if count:
                squares_kernel[(count,)](sums, grad, first, grad.numel(), PIECE, BLOCK)
            first += count
    return sums.sum(dtype=torch.float64)


def sum_of_squares_and_row_dots(
    weights: list[torch.Tensor], grads: list[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """`sum_of_squares(grads)`, and for each pair the float32 sums of weight times gradient over the last dimension.

    Weights and gradients have the same shapes and may differ in dtype; each is read once.
    """
    dots = [torch.zeros(grad.shape[:-1], device=grad.device) for grad in grads]
    rows = [dot.numel() if grad.numel() else 0 for grad, dot in zip(grads, dots, strict=True)]
    if not any(rows):
        return sum_of_squares(grads), dots
    sums = torch.empty(sum(rows), device=grads[0].device)
    first = 0
    with torch.cuda.device_of(sums):
        for weight, grad, dot, count in zip(weights, grads, dots, rows, strict=True):
            if count:
                rows_kernel[(count,)](sums, dot, weight, grad, first, grad.shape[-1] if grad.dim() else 1,
                                      row_block(weight.dtype, grad.dtype))
            first += count
    return sums.sum(dtype=torch.float64), dots


def row_dots(weights: list[torch.Tensor], grads: list[torch.Tensor]) -> list[torch.Tensor]:
    """For each weight [..., columns] and its gradient: float32 [...], the sums of their products over the columns."""
    return sum_of_squares_and_row_dots(weights, grads)[1]
