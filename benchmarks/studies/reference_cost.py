"""What doing without the native kernels costs: the same optimizer step by either backend, alternating in one process.

python benchmarks/studies/reference_cost.py
"""

from __future__ import annotations

import statistics
import time

import torch

from cofitune_fast.optim import MaskedAdamW

MATRICES, WIDTH, ROUNDS = 8, 2048, 5  # 33.6M parameters


def optimizer(dtype: torch.dtype, backend: str) -> MaskedAdamW:
    named = [(f"w{i}", torch.nn.Parameter(torch.randn(WIDTH, WIDTH).mul_(0.02).to(dtype))) for i in range(MATRICES)]
    for _, p in named:
        p.grad = torch.full_like(p, 1e-3)
    return MaskedAdamW(named, lr=1e-5, masks={name: torch.rand(WIDTH, 1) for name, _ in named}, backend=backend)


for dtype in (torch.float32, torch.bfloat16):
    contestants = {backend: optimizer(dtype, backend) for backend in ("cpu", "reference")}
    times: dict[str, list[float]] = {backend: [] for backend in contestants}
    for _ in range(ROUNDS):
        for backend, contestant in contestants.items():
            start = time.perf_counter()
            contestant.step()
            times[backend].append(time.perf_counter() - start)
    cpu, reference = (1e3 * statistics.median(times[backend][1:]) for backend in ("cpu", "reference"))
    print(f"{dtype}: native {cpu:.1f} ms, reference {reference:.1f} ms, {reference / cpu:.0f} times as long")
