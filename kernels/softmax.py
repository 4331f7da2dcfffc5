"""log_sum_exp and scaled_softmax_ in Triton: rows of logits, one program per row.

The first pass keeps a running maximum m and, in each lane, a sum s of e^(z - m); the result is m + log s. The second
overwrites the logits with scale e^(z - log_sum). Bytes moved per logit of b bytes: b, and 2 b.
"""

import torch
import triton
import triton.language as tl

from .rounding import bf16_to_float, nearest_bf16

BLOCK = 4096
WARPS = 8
_NOWHERE = tl.constexpr(-1e30)  # below all logits; finite, because -inf minus -inf is NaN
_LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32; stands for inf, because inf - inf is NaN


@triton.jit
def read(logits, here):
    """Read logits as float32; int16 holds the bits of a bfloat16."""
    stored = tl.load(logits, mask=here, other=0)
    return bf16_to_float(stored) if stored.dtype == tl.int16 else stored


@triton.jit
def log_sum_kernel(log_sums, logits, vocabulary, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocabulary
    lanes = tl.arange(0, BLOCK)
    largest = _NOWHERE
    sums = tl.zeros([BLOCK], tl.float32)
    start = 0
    while start < vocabulary:  # not range: see grad_norm.py
        here = start + lanes < vocabulary
        z = tl.where(here, read(logits + start + lanes, here), float("-inf"))
        new = tl.minimum(tl.maximum(largest, tl.max(z)), _LARGEST)
        sums = sums * tl.exp(largest - new) + tl.exp(z - new)
        largest = new
        start += BLOCK
    tl.store(log_sums + row, largest + tl.log(tl.sum(sums)))


@triton.jit
def scaled_softmax_kernel(logits, log_sums, scales, vocabulary, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocabulary
    log_sum = tl.load(log_sums + row)
    scale = tl.load(scales + row)
    lanes = tl.arange(0, BLOCK)
    start = 0
    while start < vocabulary:
        here = start + lanes < vocabulary
        result = tl.exp(read(logits + start + lanes, here) - log_sum) * scale
        if logits.dtype.element_ty == tl.int16:
            result = nearest_bf16(result)
        tl.store(logits + start + lanes, result, mask=here)
        start += BLOCK


def log_sum_exp(logits: torch.Tensor) -> torch.Tensor:
    """Compute the log-sum-exp, float32 [rows], of contiguous logits [rows, vocabulary], float32 or bfloat16."""
    rows, vocabulary = logits.shape
    log_sums = torch.empty(rows, device=logits.device)
    if rows:
        with torch.cuda.device_of(logits):
            log_sum_kernel[(rows,)](log_sums, _bits(logits), vocabulary, BLOCK, num_warps=WARPS)
    return log_sums


def scaled_softmax(logits: torch.Tensor, log_sums: torch.Tensor, scales: torch.Tensor) -> None:
    """Overwrite contiguous logits [rows, vocabulary], float32 or bfloat16; log_sums and scales are float32 [rows]."""
    rows, vocabulary = logits.shape
    if rows:
        with torch.cuda.device_of(logits):
            scaled_softmax_kernel[(rows,)](_bits(logits), log_sums, scales, vocabulary, BLOCK, num_warps=WARPS)


def _bits(logits: torch.Tensor) -> torch.Tensor:
    return logits.view(torch.int16) if logits.dtype == torch.bfloat16 else logits
