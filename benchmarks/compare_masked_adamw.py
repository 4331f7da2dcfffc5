"""One optimizer step, clipped and masked: ours in every storage against torch's chains and other packages' optimizers.

python benchmarks/compare_masked_adamw.py [--device cpu|cuda] [--workload 7B] [--rounds 15] [--json FILE]

Sides take turns in every round, and so do the measurements of the memory's bandwidth: a copy, a read, and per storage
of ours one pass over the same tensors in place that computes nothing ("in place ...", the bound). Fractions and
ratios are medians of the rounds' own. All sides run with the same number of threads (`settle_threads`).
Others' optimizers take part where they are installed (pip install bitsandbytes torchao torch-optimi).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from adamw_sides import PEERS, Builder, Workload, ours, torch_adamw, torch_mixed
from bandwidth import bandwidth_sides, settle_threads
from bench_settings import script
from contest import Side, bounds, run_rounds, summary
from memory_use import holds

ROUNDS = 15
WORKLOADS = {
    "cpu": [("67M", 16, 2048, 2048)],
    "cuda": [("7B", 16, 11008, 4096), ("13B", 20, 13824, 5120)],  # up_proj and down_proj of 8 and of 10 layers
    "quick": [("quick", 2, 64, 96)],
}


def contests(device: torch.device, peers: bool) -> dict[str, list[Builder]]:
    fp32, bf16 = torch.float32, torch.bfloat16
    foreach = device.type == "cpu"  # on GPUs it needs three more copies of the weights, and fused is faster
    all_contests = {
        "float32": [ours("fp32", ("update", "gradient")), torch_adamw(fp32, "fused"),
                    *[torch_adamw(fp32, "foreach")] * foreach],
        "bfloat16 weights, torch all in bfloat16": [
            ours("bf16"), ours("bf16_sr"), torch_adamw(bf16, "fused"), *[torch_adamw(bf16, "foreach")] * foreach,
            *[PEERS["optimi AdamW, Kahan"]] * peers,
        ],
        "bfloat16 weights, torch with float32 copies": [ours("bf16_sr"), ours("bf16_split"), ours("int8"), torch_mixed],
    }
    if peers:
        all_contests["8-bit moments"] = [ours("int8"), PEERS["bitsandbytes AdamW8bit"], PEERS["torchao AdamW8bit"]]
    return all_contests


def measure(name: str, builders: Sequence[Builder], workload: Workload, rounds: int) -> dict[str, Any]:
    settled = settle_threads()
    count, device = workload.parameters, workload.device
    sides: list[Side] = bandwidth_sides(device, min(256 if device.type == "cpu" else 1024, max(1, 4 * count >> 20)))
    first_bound = None
    for builder in builders:
        contestants, memory = holds(lambda builder=builder: _ready(builder(workload)), device)
        for contestant in contestants:
            contestant.memory = memory
            first_bound = first_bound or contestant.bound[0].name
            bound = contestant.bound[0].name if contestant.bound else first_bound
            sides += contestant.sides(count, bound, device)
        sides += contestants[0].bound if contestants else []
    times = run_rounds(sides, rounds, device)
    return {
        "name": f"{workload.name}, {name}", "device": device.type, "parameters": count,
        "tensors": workload.matrices, "shape": [workload.rows, workload.columns], "rounds": rounds, **settled,
        "bounds": bounds(sides, times), "sides": summary(sides, times, unit=count),
    }


def _ready(contestants: list) -> list:
    """With their states, which some optimizers make at the first step."""
    for contestant in contestants[:1]:
        contestant.before_step()
        contestant.step()
    return contestants


def warm_up(device: torch.device, peers: bool = False) -> None:
    """Load what is loaded at first use, so that it counts as nobody's memory or time."""
    tiny = Workload("", 1, 8, 8, device)
    for builders in contests(device, peers=False).values():
        for builder in builders:
            _ready(builder(tiny))
    for builder in PEERS.values() if peers else ():
        builder(tiny)  # a step would compile for this shape


def compare(
    device: torch.device, quick: bool = False, rounds: int = ROUNDS, workload: str | None = None
) -> Iterator[dict[str, Any]]:
    """All contests on a device, as they end. Other packages' optimizers, which compile for up to a minute,
    take part in full runs only."""
    warm_up(device, peers=not quick)
    for shape in WORKLOADS["quick" if quick else device.type]:
        if workload not in (None, shape[0]):
            continue
        for name, builders in contests(device, peers=not quick).items():
            try:
                yield measure(name, builders, Workload(*shape, device), rounds)
            except torch.cuda.OutOfMemoryError as error:
                print(f"{shape[0]}, {name}: left out, as the GPU's memory is too small ({error})", flush=True)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    script("masked_adamw", __doc__, compare, workload="67M on the CPU; 7B or 13B on a GPU; default: all of the device")
