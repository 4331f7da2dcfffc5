"""The global gradient norm, beside torch's, and with the row dots of weights and gradients in the same pass."""

from __future__ import annotations

import pytest
import torch
from bandwidth import settle_threads
from bench_settings import FULL, ROUNDS, each_device, waiting

from cofitune_fast.ops import grad_norm

COUNT, WIDTH = (16, 2048) if FULL else (2, 64)


@each_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("whose", ["ours", "torch", "ours_with_row_dots"])
def test_bench_grad_norm(benchmark, whose, dtype, device):
    grads, weights = ([torch.randn(WIDTH, WIDTH, device=device).to(dtype) for _ in range(COUNT)] for _ in range(2))
    norm = {"ours": grad_norm, "torch": torch.nn.utils.get_total_norm,
            "ours_with_row_dots": lambda grads: grad_norm(grads, weights=weights)}[whose]
    read = 2 if whose == "ours_with_row_dots" else 1
    benchmark.extra_info |= {"bytes": read * COUNT * WIDTH**2 * dtype.itemsize, **settle_threads()}
    benchmark.pedantic(waiting(norm, device), args=(grads,), rounds=ROUNDS, warmup_rounds=1)
