"""KL through the head in chunks, beside autograd through the full logits."""

from __future__ import annotations

import pytest
import torch
from bandwidth import settle_threads
from bench_settings import FULL, ROUNDS

from cofitune_fast.ops import linear_kl

TOKENS, WIDTH, VOCABULARY = (512, 576, 49152) if FULL else (16, 8, 100)


def full_logits(p: torch.Tensor, q: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    log_q, log_p = ((h @ weight.T).log_softmax(-1) for h in (q, p))
    return torch.nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


@pytest.mark.parametrize("whose", ["ours", "full_logits"])
def test_bench_linear_kl(benchmark, whose):
    p, q = (torch.randn(TOKENS, WIDTH, requires_grad=True) for _ in range(2))
    weight = torch.randn(VOCABULARY, WIDTH) * WIDTH**-0.5
    benchmark.extra_info |= settle_threads()
    loss = linear_kl if whose == "ours" else full_logits
    benchmark.pedantic(lambda: loss(p, q, weight).backward(), rounds=min(ROUNDS, 3), warmup_rounds=1)
