"""Predict the time of a training step from its work and the rates of a machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from .plan import MemoryPlan

_PRODUCT_FLOPS = 2e10  # upper bound for a measured product on a CPU, which does some 1e11 in a second
_COPY_BYTES = 2**28


@dataclass(frozen=True)
class Rates:
    """Rates of a machine; None: not known.

    flops: floating-point operations per second in the model's matrix products.
    bandwidth: bytes per second read and written in the device's memory. host_bandwidth: the same on the host.
    transfer: bytes per second between device and host.
    source: where the rates come from, in words.
    """

    flops: float
    bandwidth: float
    host_bandwidth: float | None = None
    transfer: float | None = None
    source: str = "given"


@dataclass(frozen=True)
class StepTime:
    """Predicted seconds of a step.

    products: matrix products and attention.
    rest: all other operators of forward and backward, from their memory traffic.
    optimizer: the optimizer's pass; on the host it includes both transfers. None if a rate is not known.
    """

    products: float
    rest: float
    optimizer: float | None

    @property
    def total(self) -> float:
        """Sum of the known parts."""
        return self.products + self.rest + (self.optimizer or 0.0)

    def to_dict(self) -> dict[str, float | None]:
        return {**asdict(self), "total": self.total}


def step_time(plan: MemoryPlan, rates: Rates) -> StepTime:
    """Predict the time of the planned step: each kind of work at its rate, one after the other.

    Data loading, kernel launches and the reading of cached states, which overlaps with the step, are not counted.
    """
    if plan.settings.optimizer_states == "device":
        optimizer = plan.optimizer_bytes / rates.bandwidth
    elif rates.transfer is None or rates.host_bandwidth is None:
        optimizer = None
    else:  # gradients to the host, weights back
        optimizer = plan.optimizer_bytes / rates.host_bandwidth + 2 * plan.parts["region_weights"] / rates.transfer
    return StepTime(plan.work.flops / rates.flops, plan.work.moved / rates.bandwidth, optimizer)


def measure_rates(
    hidden: int, intermediate: int, tokens: int, dtype: torch.dtype, *, flops: float | None = None,
    bandwidth: float | None = None, transfer: float | None = None, seconds: float = 0.4,
) -> Rates:
    """Measure the rates of this machine's first GPU, else of its CPU, in about three times `seconds`.

    Rates that are given are not measured. flops is measured by a product [tokens, hidden] x [hidden, intermediate] in
    `dtype`, with fewer tokens on a CPU. bandwidth is measured by a copy of 256 MiB. The best of the repetitions counts.
    Without a GPU `transfer` is the rate of that copy.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    words = []
    if flops is None:
        rows = tokens if on_gpu else max(1, min(tokens, int(_PRODUCT_FLOPS / (2 * hidden * intermediate))))
        left = torch.randn(rows, hidden, device=device).to(dtype)
        right = torch.randn(intermediate, hidden, device=device).to(dtype).t()
        flops = 2 * rows * hidden * intermediate / _best(lambda: left @ right, seconds)
        words.append(f"a product of [{rows}, {hidden}] and [{hidden}, {intermediate}]")
    host_bandwidth = _copy_rate(torch.device("cpu"), seconds)
    if bandwidth is None:
        bandwidth = _copy_rate(device, seconds) if on_gpu else host_bandwidth
        words.append("a copy of 256 MiB")
        transfer = transfer or (None if on_gpu else host_bandwidth)
    where = torch.cuda.get_device_name() if on_gpu else "CPU"
    return Rates(flops, bandwidth, host_bandwidth, transfer,
                 f"measured here ({where}, {str(dtype).removeprefix('torch.')}): {' and '.join(words)}"
                 if words else "given")


def _copy_rate(device: torch.device, seconds: float) -> float:
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / _best(lambda: target.copy_(source), seconds)


def _best(work: Callable[[], object], seconds: float) -> float:
    """Shortest time of the calls that fit into `seconds`, after a warm-up call."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    work()
    synchronize()
    end, best = time.perf_counter() + seconds, float("inf")
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        synchronize()
        best = min(best, time.perf_counter() - start)
    return best
