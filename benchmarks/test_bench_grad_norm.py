"""The global gradient norm, beside torch's."""

from __future__ import annotations

import pytest
import torch
from bandwidth import settle_threads
from bench_settings import FULL, ROUNDS

from cofitune_fast.ops import grad_norm

COUNT, WIDTH = (16, 2048) if FULL else (2, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("whose", ["ours", "torch"])
def test_bench_grad_norm(benchmark, whose, dtype):
    grads = [torch.randn(WIDTH, WIDTH).to(dtype) for _ in range(COUNT)]
    norm = grad_norm if whose == "ours" else torch.nn.utils.get_total_norm
    benchmark.extra_info |= {"bytes": COUNT * WIDTH**2 * dtype.itemsize, **settle_threads()}
    benchmark.pedantic(norm, args=(grads,), rounds=ROUNDS, warmup_rounds=1)
