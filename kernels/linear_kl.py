"""linear_kl in Triton: KL(p || q) and both gradients from two rows of raw logits, one program per row of tokens.

The first pass over both rows keeps running maxima m and sums relative to them, s = sum e^(z - m) for p and for q and
a = sum e^(z_p - m_p) ((z_p - m_p) - (z_q - m_q)); then KL = a / s_p + log(s_q / s_p). Differences are taken from the
maxima before they are subtracted from each other, so that large logits lose no more digits than log_softmax does. The
second pass overwrites the logits with dKL/dz_p = p (log p - log q - KL) and dKL/dz_q = q - p, times the derivative of
the soft cap. Bytes moved per pair of logits: 8 without gradients, 24 with them.
"""

import torch
import triton
import triton.language as tl

BLOCK = 4096
WARPS = 8
_NOWHERE = tl.constexpr(-1e30)  # stands for -inf; finite, because 0 * inf is NaN


@triton.jit
def capped(raw, softcap):
    """Return softcap * tanh(raw / softcap) and its derivative; without a cap, raw and 1.

    With e = exp(-2 |x|) in [0, 1] nothing overflows, and the derivative 4 e / (1 + e)^2 has no cancellation. The tanh
    has an absolute error of about 1e-7. Near 0 this exceeds the rounding of the logit itself, but not that of the cap.
    """
    if softcap is None:
        logit = raw
        slope = tl.full(raw.shape, 1.0, tl.float32)
    else:
        x = raw / softcap
        e = tl.exp(-2 * tl.abs(x))
        t = (1 - e) / (1 + e)
        logit = softcap * tl.where(x < 0, -t, t)
        slope = 4 * e / ((1 + e) * (1 + e))
    return logit, slope


@triton.jit
def rows_kernel(kl, logits_p, logits_q, softcap, vocabulary, GRADIENTS: tl.constexpr, BLOCK: tl.constexpr):
    """Compute kl[row], and with GRADIENTS overwrite the row's logits by the gradients."""
    row = tl.program_id(0).to(tl.int64)
    logits_p += row * vocabulary
    logits_q += row * vocabulary
    lanes = tl.arange(0, BLOCK)
    max_p = _NOWHERE
    max_q = _NOWHERE
    sum_p = tl.zeros([BLOCK], tl.float32)
    sum_q = tl.zeros([BLOCK], tl.float32)
    sum_kl = tl.zeros([BLOCK], tl.float32)
    start = 0
    while start < vocabulary:  # not range: see grad_norm.py
        here = start + lanes < vocabulary
        z_p, _ = capped(tl.load(logits_p + start + lanes, mask=here, other=0), softcap)
        z_q, _ = capped(tl.load(logits_q + start + lanes, mask=here, other=0), softcap)
        z_p = tl.where(here, z_p, _NOWHERE)
        z_q = tl.where(here, z_q, _NOWHERE)
        new_p = tl.maximum(max_p, tl.max(z_p))
        new_q = tl.maximum(max_q, tl.max(z_q))
        shrink_p = tl.exp(max_p - new_p)
        shrink_q = tl.exp(max_q - new_q)
        z_p -= new_p
        z_q -= new_q
        e_p = tl.exp(z_p)
        sum_kl = shrink_p * (sum_kl + sum_p * ((max_p - new_p) - (max_q - new_q))) + e_p * (z_p - z_q)
        sum_p = shrink_p * sum_p + e_p
        sum_q = shrink_q * sum_q + tl.exp(z_q)
        max_p = new_p
        max_q = new_q
        start += BLOCK
    total_p = tl.sum(sum_p)
    total_q = tl.sum(sum_q)
    log_ratio = tl.log(tl.div_rn(total_q, total_p))  # div_rn, so that equal rows give exactly 0
    divergence = tl.sum(sum_kl) / total_p + log_ratio
    tl.store(kl + row, divergence)
    if GRADIENTS:
        start = 0
        while start < vocabulary:
            here = start + lanes < vocabulary
            z_p, slope_p = capped(tl.load(logits_p + start + lanes, mask=here, other=0), softcap)
            z_q, slope_q = capped(tl.load(logits_q + start + lanes, mask=here, other=0), softcap)
            z_p -= max_p
            z_q -= max_q
            p = tl.exp(z_p) / total_p
            q = tl.exp(z_q) / total_q
            tl.store(logits_p + start + lanes, p * (z_p - z_q + (log_ratio - divergence)) * slope_p, mask=here)
            tl.store(logits_q + start + lanes, (q - p) * slope_q, mask=here)
            start += BLOCK


def kl_rows(z_p: torch.Tensor, z_q: torch.Tensor, softcap: float | None, need_gradients: bool) -> torch.Tensor:
    """KL(softmax(cap(z_p)) || softmax(cap(z_q))) of each row, in nats: float32 [rows].

    Args:
        z_p, z_q: raw logits, float32 [rows, vocabulary], contiguous. With `need_gradients` they are overwritten with
            the gradients of the rows' divergences by them; otherwise they stay.
        softcap: c of cap(z) = c tanh(z / c); None: no cap.
    """
    rows, vocabulary = z_p.shape
    kl = torch.empty(rows, device=z_p.device)
    if rows:
        with torch.cuda.device_of(z_p):
            rows_kernel[(rows,)](kl, z_p, z_q, softcap, vocabulary, need_gradients, BLOCK, num_warps=WARPS)
    return kl
