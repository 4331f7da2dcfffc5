"""The importance reduction against autograd through a gate of ones."""

from __future__ import annotations

import compare_unit_importance as contest
from bench_settings import FULL, ROUNDS, keep


def test_bench_against_a_gate(benchmark):
    sizes = contest.FULL if FULL else contest.QUICK
    rows = benchmark.pedantic(contest.compare, args=(sizes, 3 * ROUNDS), rounds=1)
    print("\n".join(map(contest.describe, rows)))
    benchmark.extra_info["comparison"] = rows
    keep("unit_importance", rows)
