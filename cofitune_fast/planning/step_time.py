"""How long a training step takes, from what it does and how fast a machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from .plan import MemoryPlan

_PRODUCT_FLOPS = 2e10  # at most of one product on a CPU, which manages some 1e11 in a second
_COPY_BYTES = 2**28


@dataclass(frozen=True)
class Rates:
    """flops: per second, of the model's matrix products. bandwidth: bytes per second, read and written, of the device's
    memory, host_bandwidth of the host's, transfer of the way between them; None: not known. source: in words."""

    flops: float
    bandwidth: float
    host_bandwidth: float | None = None
    transfer: float | None = None
    source: str = "given"


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step. products: matrix products and attention. rest: all other operators of forward and backward, by
    their memory traffic. optimizer: its pass; on the host with the way there and back, None where that is not known."""

    products: float
    rest: float
    optimizer: float | None

    @property
    def total(self) -> float:
        """Without what is not known."""
        return self.products + self.rest + (self.optimizer or 0.0)

    def to_dict(self) -> dict[str, float | None]:
        return {**asdict(self), "total": self.total}


def step_time(plan: MemoryPlan, rates: Rates) -> StepTime:
    """The time of the planned step: each kind of work at its rate, one after the other, nothing else in between.

    Data loading, the launching of small kernels and the reading of cached states, which runs beside the step, do not
    count.
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
    """The rates of this machine's first GPU, else of its CPU, in about three times `seconds`; given ones stay.

    A product [tokens, hidden] x [hidden, intermediate] in `dtype`, with fewer tokens on a CPU so that it ends, and
    a copy of 256 MiB; the best of those that fit into the time. Between CPU memory and itself `transfer` is that copy.
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
    """The shortest time of as many calls as fit into `seconds`, after one that does not count."""
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
