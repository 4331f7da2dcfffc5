"""Importance of a linear layer's output neurons: our reduction against autograd and against the weight's gradient.

python benchmarks/compare_unit_importance.py [--device cpu|cuda] [--rounds 9] [--json FILE]

All sides run the forward and backward of y = x W^T that "neither" runs alone, W frozen:
    ours      hooks y and adds |sum over tokens of y dy| per sample
    gate      multiplies y by a vector of ones per sample, whose gradient autograd then has
    row dot   needs no y, but W's gradient: rows of W times rows of dL/dW. This is the signed sum over the batch; an
              absolute value per sample would need one such backward pass per sample
"Added" is the time that a side adds to "neither" in the same round; "adds MB" the peak memory of a call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from bandwidth import bandwidth_sides, settle_threads
from bench_settings import script
from contest import Side, backends, bounds, run_rounds, summary
from memory_use import adds

from cofitune_fast.ops import grad_norm, unit_importance_

SMALL = {"batch": 4, "tokens": 512, "width": 576, "out": 1536}  # up_proj of SmolLM2-135M
LARGE = {"batch": 1, "tokens": 512, "width": 4096, "out": 11008}  # up_proj of a 7B model
QUICK = {"batch": 2, "tokens": 16, "width": 32, "out": 64}
ROUNDS = 9


def layer_sides(
    batch: int, tokens: int, width: int, out: int, dtype: torch.dtype, device: torch.device
) -> list[Side]:
    x = torch.randn(batch, tokens, width, device=device).to(dtype).requires_grad_()
    weight = torch.randn(out, width, device=device).mul_(width**-0.5).to(dtype)
    upstream = torch.randn(batch, tokens, out, device=device).to(dtype)
    scores = torch.zeros(out, device=device)
    whole, alone = "forward and backward of the layer", "the reduction alone"

    def neither() -> None:
        (x @ weight.T).backward(upstream)

    def ours(backend: str) -> None:
        y = x @ weight.T
        output = y.detach()

        def add(grad: torch.Tensor) -> None:
            unit_importance_(scores, output, grad, backend=backend)

        y.register_hook(add)
        y.backward(upstream)

    def gate() -> None:
        ones = torch.ones(batch, 1, out, dtype=dtype, device=device, requires_grad=True)
        ((x @ weight.T) * ones).backward(upstream)
        scores.add_(ones.grad.float().abs().sum((0, 1)))

    def row_dot() -> None:
        trained = weight.detach().requires_grad_()
        (x @ trained.T).backward(upstream)
        scores.add_(grad_norm([trained.grad], weights=[weight]).row_dots[0].abs())

    output = (x @ weight.T).detach()
    names = backends("unit_importance_", device)
    sides = [Side("neither", neither, part=whole),
             *(Side(f"ours, {name}", lambda name=name: ours(name), part=whole) for name in names),
             Side("gate", gate, part=whole, baseline=True), Side("row dot", row_dot, part=whole, baseline=True)]
    for side in sides:
        side.before = lambda: setattr(x, "grad", None)
        for _ in range(2):
            side.before()
            side.work()
        side.before()
        side.memory = adds(side.work, device)
    return sides + [
        Side(f"ours, {name}", lambda name=name: unit_importance_(scores, output, upstream, backend=name),
             2 * output.nbytes, alone) for name in names
    ]


def measure(sizes: dict[str, int], dtype: torch.dtype, device: torch.device, rounds: int) -> dict[str, Any]:
    settled = settle_threads()
    sides = [*layer_sides(**sizes, dtype=dtype, device=device), *bandwidth_sides(device, 64)]
    times = run_rounds(sides, rounds, device)
    size = f"{sizes['batch']}x{sizes['tokens']}x{sizes['out']}"
    return {"name": f"unit importance, {str(dtype).removeprefix('torch.')}, y is {size}", **sizes,
            "device": device.type, "rounds": rounds, **settled, "bounds": bounds(sides, times),
            "sides": summary(sides, times, unit=sizes["batch"] * sizes["tokens"] * sizes["out"])}


def compare(device: torch.device, quick: bool = False, rounds: int = ROUNDS) -> Iterator[dict[str, Any]]:
    fp32, bf16 = torch.float32, torch.bfloat16
    workloads = [(QUICK, fp32), (QUICK, bf16)] if quick else [(SMALL, fp32), (SMALL, bf16), (LARGE, bf16)]
    for sizes, dtype in workloads:
        yield measure(sizes, dtype, device, rounds)


if __name__ == "__main__":
    script("unit_importance", __doc__, compare)
