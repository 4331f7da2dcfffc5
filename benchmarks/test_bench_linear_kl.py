"""KL through the head in chunks, beside autograd through the full logits."""

from __future__ import annotations

import compare_linear_kl
from bench_settings import contest_of, each_device


@each_device
def test_bench_against_full_logits(benchmark, device):
    contest_of("linear_kl", compare_linear_kl.compare, device, benchmark)
