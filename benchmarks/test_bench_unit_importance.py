"""The importance reduction, beside a gate of ones and the rows of the weight's gradient."""

from __future__ import annotations

import compare_unit_importance
from bench_settings import contest_of, each_device


@each_device
def test_bench_against_gate_and_row_dot(benchmark, device):
    contest_of("unit_importance", compare_unit_importance.compare, device, benchmark)
