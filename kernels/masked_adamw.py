"""masked_adamw_ in Triton: one launch per tensor. cofitune_fast/ops/masked_adamw.py is the specification.

A tensor is a matrix whose rows are cut into pieces of WIDTH columns. One program works on PIECES consecutive pieces. So
a row's factor is read once per piece, and a piece whose factor is 0 is not read at all. Consecutive pieces are also
consecutive in memory. A program computes its start in 64 bits, and all further distances in 32 bits.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from .eight_bit import BLOCK, block_scale, decode_first, decode_second, encode_first, encode_second, inverse_scale
from .rounding import (
    bf16_to_float,
    join,
    random_of_first,
    random_of_second,
    random_of_tile,
    random_of_weight,
    split,
    stochastic_round,
)

TILE = 1024  # elements per program
WARPS = 4

# As in csrc/include/cofitune/adamw_tensor.h.
FP32, BF16_SPLIT, BF16_SR, BF16, INT8 = (tl.constexpr(code) for code in range(5))
NONE, ONE, ROW, COLUMN, ELEMENT = (tl.constexpr(code) for code in range(5))
L1 = tl.constexpr(2)


@triton.jit
def tile(program, rows, columns, pieces_per_row, PIECES: tl.constexpr, WIDTH: tl.constexpr):
    """Compute where a program works.

    Returns its first piece and the start of that piece in the tensor; for each of its pieces the row, the first column
    and whether it exists; for each element [PIECES, WIDTH] its distance from the start (int32) and whether it exists.
    """
    first_piece = program.to(tl.int64) * PIECES
    first_row = first_piece // pieces_per_row
    piece_of_row = first_piece - first_row * pieces_per_row
    start = first_row * columns + piece_of_row * WIDTH
    piece, lane = tl.arange(0, PIECES), tl.arange(0, WIDTH)
    down = (piece_of_row.to(tl.uint32) + piece.to(tl.uint32)) // pieces_per_row.to(tl.uint32)
    down = down.to(tl.int32)  # rows from first_row
    right = piece - down * pieces_per_row.to(tl.int32)  # pieces from piece_of_row
    row, column = first_row + down, (piece_of_row + right) * WIDTH
    exists = row < rows
    inside = exists[:, None] & (lane[None, :] < (columns - column)[:, None])
    place = (down * columns.to(tl.int32) + right * WIDTH)[:, None] + lane[None, :]
    return first_piece, start, row, column, place, exists, inside


@triton.jit
def _number(pointer):
    """Load one number as a tile of one element, because Triton's interpreter cannot compare scalars."""
    return tl.load(pointer + tl.zeros((1, 1), tl.int32))


@triton.jit
def _factor(base, row, column, start, place, exists, inside, LAYOUT: tl.constexpr):
    """Load factors as float32, in a shape that broadcasts to the tile."""
    if LAYOUT == ONE:
        factor = _number(base)
    elif LAYOUT == ROW:
        factor = tl.load(base + row, mask=exists)[:, None]
    elif LAYOUT == COLUMN:
        factor = tl.load(base + column[:, None] + tl.arange(0, place.shape[1])[None, :], mask=inside)
    else:
        factor = tl.load(base + start + place, mask=inside)
    return factor.to(tl.float32) * (1 / 255) if factor.dtype == tl.uint8 else factor


@triton.jit
def _widen(stored):
    """Convert to float32; int16 holds the bits of a bfloat16."""
    return bf16_to_float(stored) if stored.dtype == tl.int16 else stored


@triton.jit(do_not_specialize=["seed", "offset", "rows", "pieces_per_row"])
def masked_adamw_kernel(
    p, g, m, v, remainder, scales, mask, anchor, pull, clip, coefficients, step,
    seed: tl.uint64, offset: tl.uint64, rows: tl.int64, pieces_per_row: tl.int64, columns: tl.int64,
    STORAGE: tl.constexpr, MASK_LAYOUT: tl.constexpr, PULL_LAYOUT: tl.constexpr, PULL: tl.constexpr,
    GRADIENT_MODE: tl.constexpr, ZERO_GRAD: tl.constexpr, PIECES: tl.constexpr, WIDTH: tl.constexpr,
):
    first_piece, start, row, column, place, exists, inside = tile(
        tl.program_id(0), rows, columns, pieces_per_row, PIECES, WIDTH
    )
    MASKED: tl.constexpr = MASK_LAYOUT != NONE
    PARTLY: tl.constexpr = MASK_LAYOUT >= COLUMN and not GRADIENT_MODE  # some elements of a piece may stay unchanged
    touched = inside  # elements that are read; pieces that are skipped altogether are False here
    if clip is not None:
        touched = touched & (_number(clip + 1) == 0.0)
    if MASKED:
        factor = _factor(mask, row, column, start, place, exists, inside, MASK_LAYOUT)
        if not GRADIENT_MODE and not PARTLY:
            touched = touched & (factor != 0.0)

    p += start
    g += start
    m += start
    v += start
    p_old = tl.load(p + place, mask=touched)
    g_old = tl.load(g + place, mask=touched)
    m_old = tl.load(m + place, mask=touched)
    v_old = tl.load(v + place, mask=touched)
    if ZERO_GRAD:
        tl.debug_barrier()  # another thread may write an element than the one that read it
        tl.store(g + place, tl.zeros_like(g_old), mask=inside)
    if STORAGE == BF16_SPLIT:
        remainder += start
        low_old = tl.load(remainder + place, mask=touched)
        x = join(p_old, low_old)
    else:
        x = _widen(p_old)
    if STORAGE == INT8:
        scales += 2 * (first_piece + tl.arange(0, PIECES))
        m_scale, v_scale = tl.load(scales, mask=exists), tl.load(scales + 1, mask=exists)
        first, second = decode_first(m_old, m_scale[:, None]), decode_second(v_old, v_scale[:, None])
    else:
        first, second = _widen(m_old), _widen(v_old)

    gradient = _widen(g_old)
    if clip is not None:
        gradient = gradient * tl.load(clip)
    if MASKED and GRADIENT_MODE:
        gradient = gradient * factor
    one_minus_beta1, beta2 = tl.load(coefficients), tl.load(coefficients + 1)
    one_minus_beta2, step_size = tl.load(coefficients + 2), tl.load(coefficients + 3)
    denominator_scale, eps = tl.load(coefficients + 4), tl.load(coefficients + 5)
    decay, lr = tl.load(coefficients + 6), tl.load(coefficients + 7)
    first = first + one_minus_beta1 * (gradient - first)
    second = beta2 * second + one_minus_beta2 * gradient * gradient
    change = decay * x + tl.div_rn(step_size * first, tl.sqrt_rn(second) * denominator_scale + eps)
    if anchor is not None:
        strength = lr * _factor(pull, row, column, start, place, exists, inside, PULL_LAYOUT)
        home = _widen(tl.load(anchor + start + place, mask=touched))
        if PULL != L1:
            change = change + tl.where(strength > 1.0, 1.0, strength) * (x - home)
    if MASKED and not GRADIENT_MODE:
        change = factor * change
    x = x - change
    if anchor is not None and PULL == L1:
        if MASKED and not GRADIENT_MODE:
            strength = factor * strength
        away = x - home
        nearer = tl.where(away < 0.0, x + strength, x - strength)
        x = tl.where(tl.abs(away) <= strength, home, nearer)

    p_new, m_new, v_new = x, first, second
    if STORAGE == BF16_SPLIT:
        p_new, low_new = split(x)
    elif STORAGE != FP32:
        random = random_of_tile(seed, tl.load(step), offset.to(tl.uint64) + start.to(tl.uint64), place)
        p_new = stochastic_round(x, random_of_weight(random))
    if STORAGE == BF16:
        m_new = stochastic_round(first, random_of_first(random))
        v_new = stochastic_round(second, random_of_second(random))
    live = touched
    if PARTLY:
        live = touched & (factor != 0.0)
    if STORAGE == INT8:
        m_scale, v_scale = block_scale(tl.where(live, first, 0.0)), block_scale(tl.where(live, second, 0.0))
        m_new = encode_first(first, inverse_scale(m_scale)[:, None], random_of_first(random))
        v_new = encode_second(second, inverse_scale(v_scale)[:, None], random_of_second(random))
        moves = tl.max(live.to(tl.int32), axis=1) > 0
        tl.store(scales, m_scale, mask=moves)
        tl.store(scales + 1, v_scale, mask=moves)
    if PARTLY:
        p_new, m_new, v_new = tl.where(live, p_new, p_old), tl.where(live, m_new, m_old), tl.where(live, v_new, v_old)
        if STORAGE == BF16_SPLIT:
            low_new = tl.where(live, low_new, low_old)
    tl.store(p + place, p_new, mask=touched)
    tl.store(m + place, m_new, mask=touched)
    tl.store(v + place, v_new, mask=touched)
    if STORAGE == BF16_SPLIT:
        tl.store(remainder + place, low_new, mask=touched)


def _bits(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """View bfloat16 as int16, because Triton's interpreter computes wrongly with bfloat16."""
    return tensor.view(torch.int16) if tensor is not None and tensor.dtype == torch.bfloat16 else tensor


def _width(columns: int, widest: int, narrowest: int) -> int:
    """Choose the width of a row's pieces: the widest of which little of the last piece hangs over the row's end."""
    width = min(widest, triton.next_power_of_2(columns))
    while width > narrowest and -columns % width > columns // 8:
        width //= 2
    return width


def masked_adamw(
    params: Sequence[torch.Tensor], grads: Sequence[torch.Tensor], exp_avgs: Sequence[torch.Tensor],
    exp_avg_sqs: Sequence[torch.Tensor], remainders: Sequence[torch.Tensor], scales: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor | None], anchors: Sequence[torch.Tensor | None],
    pulls: Sequence[torch.Tensor | None], matrices: Sequence[int], offsets: Sequence[int], clip: torch.Tensor | None,
    scalars: torch.Tensor, *, storage: int, pull_kind: int, gradient_mode: bool, zero_grad: bool, seed: int,
) -> None:
    """Update a list of contiguous tensors in place by one step; nothing is checked here.

    Args:
        params ... pulls, clip: as cofitune_fast.ops.masked_adamw_ describes them; remainders and scales may be empty.
        matrices: per tensor its rows, columns, mask layout, pull layout, and a number that is ignored here.
        offsets: per tensor the random counter of its first element.
        scalars: int64 [5] on the tensors' device, the eight float32 coefficients and the step.
        storage: 0 fp32, 1 bf16_split, 2 bf16_sr, 3 bf16, 4 int8.
        pull_kind: 1 L2 or 2 L1, for tensors with an anchor.
    """
    coefficients, step = scalars.view(torch.float32), scalars[4:]
    with torch.cuda.device_of(scalars):
        for index, p in enumerate(params):
            if not p.numel():
                continue
            rows, columns, mask_layout, pull_layout, _ = map(int, matrices[5 * index : 5 * index + 5])
            if storage == INT8:
                width = _width(columns, BLOCK, BLOCK)
            elif any(layout in (ROW, COLUMN) for layout in (mask_layout, pull_layout)):
                width = _width(columns, TILE, 128)
            else:  # one factor for all or one per element: rows do not matter
                rows, columns, width = 1, p.numel(), TILE
            pieces_per_row = triton.cdiv(columns, width)
            masked_adamw_kernel[(triton.cdiv(rows * pieces_per_row, TILE // width),)](
                _bits(p), _bits(grads[index]), _bits(exp_avgs[index]), _bits(exp_avg_sqs[index]),
                remainders[index] if remainders else None, scales[index] if scales else None, masks[index],
                _bits(anchors[index]), pulls[index], clip, coefficients, step, seed % 2**64, offsets[index] % 2**64,
                rows, pieces_per_row, columns, STORAGE=storage, MASK_LAYOUT=mask_layout, PULL_LAYOUT=pull_layout,
                PULL=pull_kind, GRADIENT_MODE=gradient_mode, ZERO_GRAD=zero_grad, PIECES=TILE // width, WIDTH=width,
                num_warps=WARPS, enable_fp_fusion=False,  # bits as on the other backends
            )
