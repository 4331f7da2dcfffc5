"""unit_importance_ in Triton, in two kernels without atomics. cofitune_fast/ops/unit_importance.py specifies it.

The first cuts each sample into splits of 128 tokens and sums y dL/dy over a split, column by column: whatever a unit
is, the reads are 16 bytes wide along the columns. The second adds up the splits and columns of a unit, takes the
absolute value per sample and adds the samples to the scores. In between stand 4 bytes per column and split.
"""

import torch
import triton
import triton.language as tl

SPLIT = 128  # tokens per split
TOKENS = 16  # tokens read at a time
COLUMNS = 256
NEURONS = (64, 16)  # units of one column: units at a time, terms of each at a time
HEADS = (1, 1024)  # units of several columns, likewise


@triton.jit(do_not_specialize=["tokens"])
def columns_kernel(
    sums, y, grad_y, attention_mask, tokens, width,
    SPLIT: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """Compute sums[sample, split, column] = sum of y * grad_y over the split's tokens; `tokens` is the length of a
    sample.
    """
    blocks = tl.cdiv(width, COLUMNS)
    chunk = tl.program_id(0) // blocks  # neighboring programs read neighboring columns
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    splits = tl.cdiv(tokens, SPLIT)
    start = chunk % splits * SPLIT
    first = (chunk // splits).to(tl.int64) * tokens + start
    y += first * width
    grad_y += first * width
    inside = column < width
    total = tl.zeros([TOKENS, COLUMNS], tl.float32)
    for step in range(0, SPLIT, TOKENS):
        token = step + tl.arange(0, TOKENS)
        live = start + token < tokens
        if attention_mask is not None:
            live &= tl.load(attention_mask + first + token, mask=live, other=0) != 0
        place = token.to(tl.int64)[:, None] * width + column[None, :]
        here = live[:, None] & inside[None, :]
        total += tl.load(y + place, mask=here, other=0).to(tl.float32) * tl.load(
            grad_y + place, mask=here, other=0
        ).to(tl.float32)
    tl.store(sums + chunk.to(tl.int64) * width + column, tl.sum(total, 0), mask=inside)


@triton.jit(do_not_specialize=["samples", "splits", "units"])
def units_kernel(scores, sums, samples, splits, units, unit_size, UNITS: tl.constexpr, TERMS: tl.constexpr):
    """Add to scores[unit] the sum over samples of |sum over splits and the unit's columns of sums[sample, split,
    column]|.
    """
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)[:, None]
    width = units * unit_size
    score = tl.zeros([UNITS], tl.float32)
    sample = 0
    while sample < samples:  # not range: see grad_norm.py
        gate = tl.zeros([UNITS, TERMS], tl.float32)
        start = 0
        while start < splits * unit_size:
            term = start + tl.arange(0, TERMS)[None, :]
            split = (sample * splits + term // unit_size).to(tl.int64)
            place = split * width + unit * unit_size + term % unit_size
            gate += tl.load(sums + place, mask=(unit < units) & (term < splits * unit_size), other=0)
            start += TERMS
        score += tl.abs(tl.sum(gate, 1))
        sample += 1
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    scores += unit
    tl.store(scores, tl.load(scores, mask=unit < units) + score, mask=unit < units)


def unit_importance(
    scores: torch.Tensor, y: torch.Tensor, grad_y: torch.Tensor, attention_mask: torch.Tensor | None, unit_size: int,
    passes: int,
) -> None:
    """scores[u] += sum over samples of |sum over passes, tokens and columns of unit u of y grad_y|, in place.

    Args:
        scores: float32 [D / unit_size].
        y, grad_y: float32 or bfloat16 [B, T, D]; `passes` consecutive rows of the batch are one sample.
        attention_mask: bool [B, T]; tokens where it is False are not read. All tensors are contiguous.
    """
    batch, tokens, width = y.shape
    if not y.numel():
        return
    samples, tokens, units = batch // passes, tokens * passes, width // unit_size
    splits = triton.cdiv(tokens, SPLIT)
    sums = torch.empty(samples, splits, width, device=y.device)
    bytes_of_mask = None if attention_mask is None else attention_mask.view(torch.uint8)
    at_once, terms = NEURONS if unit_size == 1 else HEADS
    with torch.cuda.device_of(y):
        grid = (samples * splits * triton.cdiv(width, COLUMNS),)
        columns_kernel[grid](sums, y, grad_y, bytes_of_mask, tokens, width, SPLIT, TOKENS, COLUMNS)
        units_kernel[(triton.cdiv(units, at_once),)](scores, sums, samples, splits, units, unit_size, at_once, terms)
