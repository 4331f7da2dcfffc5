"""The fused step in each storage and mask mode, and beside others."""

from __future__ import annotations

import compare_masked_adamw
import compare_small_tensors
import pytest
from adamw_sides import Workload, ours
from bandwidth import settle_threads
from bench_settings import FULL, ROUNDS, contest_of, each_device, waiting

from cofitune_fast.ops._storage import STORAGES


@each_device
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("mode", ["update", "gradient"])
def test_bench_step(benchmark, device, storage, mode):
    settled = settle_threads()
    workload = Workload(*compare_masked_adamw.WORKLOADS[device.type if FULL else "quick"][0], device)
    for contestant in ours(storage, (mode,))(workload)[:1]:
        contestant.before_step()
        benchmark.extra_info |= {"name": contestant.name, "parameters": workload.parameters,
                                 "bytes_per_parameter": contestant.moved + contestant.chain, **settled}
        benchmark.pedantic(waiting(contestant.step, device), setup=contestant.before_step, rounds=ROUNDS,
                           warmup_rounds=1)


@each_device
def test_bench_against_others(benchmark, device):
    contest_of("masked_adamw", compare_masked_adamw.compare, device, benchmark)


@each_device
def test_bench_small_tensors(benchmark, device):
    contest_of("small_tensors", compare_small_tensors.compare, device, benchmark)
