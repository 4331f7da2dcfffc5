"""What the memory gives: the bounds that the contests measure in every round."""

from __future__ import annotations

import pytest
import torch
from bandwidth import bandwidth_sides, in_place_sides, settle_threads
from bench_settings import FULL, ROUNDS, each_device, waiting

MEGABYTES = 256 if FULL else 1
NAMES = ("copy", "read", "in_place_fp32", "in_place_bf16_weights")


def four_streams(weight: torch.dtype, device: torch.device, elements: int) -> list[list[torch.Tensor]]:
    """Tensors as of p, g, m and v, two each, so that a pass crosses from one to the next."""
    return [[torch.randn(elements // 2 + 37, device=device).to(dtype) for _ in range(2)]
            for dtype in (weight, weight, torch.float32, torch.float32)]


@each_device
@pytest.mark.parametrize("name", NAMES)
def test_bench_bandwidth(benchmark, name, device):
    settled = settle_threads()
    if name.startswith("in_place"):
        weight = torch.float32 if name == NAMES[2] else torch.bfloat16
        streams = four_streams(weight, device, MEGABYTES << 16)
        sides = in_place_sides(name, streams, (True, False, True, True))
        before = [[tensor.clone() for tensor in stream] for stream in streams]
        for side in sides:
            side.work()
        assert all(torch.equal(a, b) for old, new in zip(before, streams, strict=True)
                   for a, b in zip(old, new, strict=True))
    else:
        sides = [side for side in bandwidth_sides(device, MEGABYTES) if side.name == name]
    benchmark.extra_info |= {"bytes": sides[-1].bytes, **settled}
    benchmark.pedantic(waiting(sides[-1].work, device), rounds=ROUNDS, warmup_rounds=1)
