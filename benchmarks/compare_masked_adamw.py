"""One optimizer step, clipped and masked: ours against torch's own chain, alternating in one process.

python benchmarks/compare_masked_adamw.py [--matrices 16] [--rounds 7] [--json benchmarks/results/masked_adamw.json]

Torch's chain is clip_grad_norm_(foreach) -> gradient times mask -> AdamW(fused) -> zero_grad(set_to_none=False), the
mask being on the gradient, as torch offers no other. Bytes are counted, not measured: each read and each write that the
chain makes, per parameter. The copy bandwidth is the best of a measurement before and one after.
Both sides run with the same number of threads: one, where the machine cannot run more at once (`settle_threads`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from bandwidth import copy_bandwidth, settle_threads, stream_bandwidth
from provenance import save

from cofitune_fast.optim import MaskedAdamW

FULL = {"matrices": 16, "width": 2048}  # 67M parameters
QUICK = {"matrices": 2, "width": 64}
OPTIONS = {"lr": 1e-5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


@dataclass
class Contest:
    """Both sides of one comparison: a step each, and the bytes per parameter each must move."""

    name: str
    ours: Callable[[], None]
    theirs: Callable[[], None]
    our_bytes: int
    their_bytes: int
    grads: list[torch.Tensor]  # of both sides: filled anew before each step, outside the time


def parameters(
    matrices: int, width: int, dtype: torch.dtype
) -> tuple[list[torch.nn.Parameter], list[torch.Tensor]]:
    """Square matrices with gradients, and a row mask each."""
    params = [torch.nn.Parameter(torch.randn(width, width).mul_(0.02).to(dtype)) for _ in range(matrices)]
    for p in params:
        p.grad = torch.full_like(p, 1e-3)
    return params, [torch.rand(width, 1).clamp(min=0.1).to(dtype) for _ in params]


def our_step(params: list[torch.nn.Parameter], masks: list[torch.Tensor], mode: str) -> Callable[[], None]:
    named = [(f"layer.{index}.weight", p) for index, p in enumerate(params)]
    by_name = {name: mask for (name, _), mask in zip(named, masks, strict=True)}
    optimizer = MaskedAdamW(named, masks=by_name, mask_mode=mode, zero_grad_after=True, **OPTIONS)
    return lambda: optimizer.step()


def torch_step(params: list[torch.nn.Parameter], masks: list[torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(params, fused=True, **OPTIONS)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
        torch._foreach_mul_([p.grad for p in params], masks)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step


def torch_mixed_step(params: list[torch.nn.Parameter], masks: list[torch.Tensor]) -> Callable[[], None]:
    """bfloat16 weights with float32 states as torch users do it: float32 copies are trained and copied back."""
    masters = [torch.nn.Parameter(p.detach().float()) for p in params]
    for master in masters:
        master.grad = torch.zeros_like(master)
    masks = [mask.float() for mask in masks]
    optimizer = torch.optim.AdamW(masters, fused=True, **OPTIONS)
    grads, weights = [p.grad for p in params], [p.data for p in params]

    def step() -> None:
        torch._foreach_copy_([m.grad for m in masters], grads)
        torch.nn.utils.clip_grad_norm_(masters, 1.0, foreach=True)
        torch._foreach_mul_([m.grad for m in masters], masks)
        optimizer.step()
        torch._foreach_copy_(weights, [m.data for m in masters])
        torch._foreach_zero_(grads)

    return step


def contests(matrices: int, width: int) -> list[Callable[[], Contest]]:
    """Norm 1 read of g; clip and mask each read and write g; AdamW reads p, g, m, v and writes p, m, v; zero writes g.

    Ours in float32: 4 + 28 + 4 = 36; with bfloat16 weights 2 + 22 + 2 = 26. Torch in float32: 12 + 8 + 28 + 4 = 52, all
    in bfloat16 (moments too) half of it; mixed, with casts of g in (6) and of p out (6): 6 + 12 + 8 + 28 + 6 + 2 = 62.
    """

    def build(name: str, dtype: torch.dtype, theirs: Callable[..., Callable[[], None]], our_bytes: int,
              their_bytes: int, mode: str = "update") -> Callable[[], Contest]:
        def make() -> Contest:
            sides, grads = [], []
            for side in ("ours", "theirs"):
                params, masks = parameters(matrices, width, dtype)
                grads += [p.grad for p in params]
                sides.append(our_step(params, masks, mode) if side == "ours" else theirs(params, masks))
            return Contest(name, *sides, our_bytes, their_bytes, grads)

        return make

    return [
        build("float32, update mask", torch.float32, torch_step, 36, 52),
        build("float32, gradient mask", torch.float32, torch_step, 36, 52, "gradient"),
        build("bfloat16 with float32 moments, against torch all in bfloat16", torch.bfloat16, torch_step, 26, 26),
        build("bfloat16 with float32 moments, against torch with float32 copies", torch.bfloat16, torch_mixed_step,
              26, 62),
    ]


def measure(contest: Contest, parameters: int, rounds: int) -> dict[str, Any]:
    """Alternate the sides `rounds` times after one warm-up each, and the machine's bandwidth before and after."""
    megabytes = min(256, max(1, 4 * parameters >> 20))  # the copy is no larger than the weights
    settled = settle_threads()
    fresh = torch.randn(contest.grads[0].shape).mul_(1e-3).to(contest.grads[0].dtype)

    def refill() -> None:
        for grad in contest.grads:
            grad.copy_(fresh)

    refill()
    contest.ours()
    contest.theirs()
    bandwidths = [copy_bandwidth(megabytes)]
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        refill()
        for side, step in (("ours", contest.ours), ("theirs", contest.theirs)):
            start = time.perf_counter()
            step()
            times[side].append(time.perf_counter() - start)
    bandwidths.append(copy_bandwidth(megabytes))
    copy = max(bandwidths)
    row: dict[str, Any] = {"name": contest.name, "parameters": parameters, "rounds": rounds, **settled,
                           "copy_gb_per_s": copy / 1e9, "in_place_gb_per_s": stream_bandwidth(megabytes) / 1e9}
    for side, count in (("ours", contest.our_bytes), ("theirs", contest.their_bytes)):
        median = statistics.median(times[side])
        row[side] = {
            "median_ms": 1e3 * median, "best_ms": 1e3 * min(times[side]), "bytes_per_parameter": count,
            "gb_per_s": count * parameters / median / 1e9, "of_copy_bandwidth": count * parameters / median / copy,
        }
    row["ratio_of_medians"] = row["theirs"]["median_ms"] / row["ours"]["median_ms"]
    row["ratio_of_bests"] = row["theirs"]["best_ms"] / row["ours"]["best_ms"]
    row["ratio_of_counted_bytes"] = contest.their_bytes / contest.our_bytes
    return row


def describe(row: dict[str, Any]) -> str:
    lines = [f"{row['name']} ({row['parameters'] / 1e6:.1f}M parameters, threads: {row['threads']}, copy "
             f"{row['copy_gb_per_s']:.1f} and in place {row['in_place_gb_per_s']:.1f} GB/s)"]
    for side in ("ours", "theirs"):
        r = row[side]
        lines.append(f"  {side:6} median {r['median_ms']:7.1f} ms, best {r['best_ms']:7.1f} ms, "
                     f"{r['bytes_per_parameter']} B/parameter, {r['gb_per_s']:5.1f} GB/s = "
                     f"{r['of_copy_bandwidth']:.0%} of copy")
    lines.append(f"  theirs / ours: medians {row['ratio_of_medians']:.2f}, bests {row['ratio_of_bests']:.2f}, "
                 f"counted bytes {row['ratio_of_counted_bytes']:.2f}")
    return "\n".join(lines)


def compare(sizes: dict[str, int], rounds: int) -> list[dict[str, Any]]:
    rows = []
    for make in contests(**sizes):
        rows.append(measure(make(), sizes["matrices"] * sizes["width"] ** 2, rounds))
        print(describe(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--matrices", type=int, default=FULL["matrices"], help="of 2048 x 2048")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="file for the results with their provenance")
    arguments = parser.parse_args()
    rows = compare({**FULL, "matrices": arguments.matrices}, arguments.rounds)
    if arguments.json:
        save(arguments.json, "masked_adamw", rows)


if __name__ == "__main__":
    main()
