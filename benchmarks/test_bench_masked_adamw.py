"""The fused step against torch's chain, and each storage on its own."""

from __future__ import annotations

import compare_masked_adamw as contest
import pytest
import torch
from bandwidth import settle_threads
from bench_settings import FULL, ROUNDS, keep

SIZES = contest.FULL if FULL else contest.QUICK


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16_sr"])
@pytest.mark.parametrize("mode", ["update", "gradient"])
def test_bench_step(benchmark, dtype, mode):
    settled = settle_threads()
    step = contest.our_step(*contest.parameters(**SIZES, dtype=dtype), mode)
    count = SIZES["matrices"] * SIZES["width"] ** 2
    benchmark.extra_info |= {"parameters": count, "bytes_per_parameter": 36 if dtype == torch.float32 else 26,
                             **settled}
    benchmark.pedantic(step, rounds=ROUNDS, warmup_rounds=1)


def test_bench_against_torch(benchmark):
    rows = benchmark.pedantic(contest.compare, args=(SIZES, ROUNDS), rounds=1)
    benchmark.extra_info["comparison"] = rows
    keep("masked_adamw", rows)
