"""The gradient of a next-token loss in place of its logits, beside torch's chain and autograd."""

from __future__ import annotations

import compare_softmax
from bench_settings import contest_of, each_device


@each_device
def test_bench_against_log_softmax_and_autograd(benchmark, device):
    contest_of("softmax", compare_softmax.compare, device, benchmark)
