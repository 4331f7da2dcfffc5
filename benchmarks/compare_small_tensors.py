"""Many small tensors, where launching and Python cost more than memory: a whole step of 300 tensors of 4096 elements.

python benchmarks/compare_small_tensors.py [--device cpu|cuda] [--rounds 15] [--json FILE]

Steps follow each other without waiting for the device, and each figure is per step. With a mask all sides clip, mask,
update and set gradients to zero; without one torch needs no pass of its own for it, as foreach and fused like best.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from adamw_sides import Workload, ours, torch_adamw
from bandwidth import settle_threads
from bench_settings import script
from compare_masked_adamw import warm_up
from contest import Side, run_rounds, summary

FULL, QUICK = {"tensors": 300, "steps": 20}, {"tensors": 3, "steps": 1}
ROUNDS = 15


def measure(device: torch.device, dtype: torch.dtype, tensors: int, steps: int, rounds: int) -> dict[str, Any]:
    settled = settle_threads()
    sides = []
    for masked, part in ((True, "clip, mask, AdamW, zero"), (False, "clip, AdamW, zero")):
        workload = Workload("", tensors, 64, 64, device, masked)
        storages = ["fp32"] if dtype == torch.float32 else ["bf16_sr", "bf16"]
        for builder in [*map(ours, storages), torch_adamw(dtype, "fused"), torch_adamw(dtype, "foreach")]:
            sides += [Side(c.name, c.step, part=part, before=c.before_step, calls=steps, baseline=c.baseline)
                      for c in builder(workload)]
    times = run_rounds(sides, rounds, device)
    return {"name": f"{tensors} tensors of 4096 elements, {str(dtype).removeprefix('torch.')}", "device": device.type,
            "tensors": tensors, "elements": 4096, "steps": steps, "rounds": rounds, **settled,
            "sides": summary(sides, times)}


def compare(device: torch.device, quick: bool = False, rounds: int = ROUNDS) -> Iterator[dict[str, Any]]:
    warm_up(device)
    for dtype in (torch.float32, torch.bfloat16):
        yield measure(device, dtype, **(QUICK if quick else FULL), rounds=rounds)


if __name__ == "__main__":
    script("small_tensors", __doc__, compare)
