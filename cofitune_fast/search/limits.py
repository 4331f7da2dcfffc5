"""Limits of what a region's training may need: memory, and time as a share of full fine-tuning's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..errors import CofituneError

T = TypeVar("T")


@dataclass(frozen=True)
class Need:
    """Predicted need of the whole training of one region.

    Attributes:
        time: counted operations as a share of one full fine-tuning's, which stand for the share of its time.
        memory: peak bytes on the device, or None where it was not planned.
    """

    time: float
    memory: int | None = None


@dataclass(frozen=True)
class Limits:
    """Limits of a user; None stands for no limit.

    Attributes:
        memory: bytes on the device.
        time: share of one full fine-tuning's time.
        asked: False if the time is a default: where no region fits it, the one with the least time is tried.
    """

    memory: int | None = None
    time: float | None = None
    asked: bool = True

    def excess(self, need: Need) -> float:
        """Return by which factor the need exceeds the limits, at most 1 if it fits."""
        parts = []
        if self.memory is not None and need.memory is not None:
            parts.append(need.memory / self.memory)
        if self.time is not None:
            parts.append(need.time / self.time)
        return max(parts, default=0.0)

    def describe(self, need: Need) -> str:
        """Say what a region needs of that which is limited, rounded up."""
        parts = []
        if self.memory is not None and need.memory is not None:
            parts.append(_bytes(need.memory))
        if self.time is not None:
            parts.append(f"{math.ceil(100 * need.time) / 100:.2f} of full SFT's time")
        return " and ".join(parts)


def fitting(limits: Limits, needs: Mapping[T, Need]) -> list[T]:
    """Return what fits the limits, in the given order; empty if nothing does."""
    found = [one for one, need in needs.items() if limits.excess(need) <= 1]
    if found or limits.asked:
        return found
    memory = Limits(limits.memory)
    within = [one for one, need in needs.items() if memory.excess(need) <= 1]
    return sorted(within, key=lambda one: needs[one].time)[:1]


def nothing_fits(limits: Limits, needs: Sequence[tuple[str, Need]]) -> CofituneError:
    """Make the error for a space of which no region fits; it names the nearest one."""
    limits = limits if limits.asked else Limits(limits.memory)
    region, need = min(needs, key=lambda pair: limits.excess(pair[1]))
    keys = [f"search.{key} to {text}" for key, one, text in (
        ("budget_memory", Limits(limits.memory), limits.memory is not None and _bytes(need.memory)),
        ("budget_time", Limits(time=limits.time), f"{math.ceil(100 * need.time) / 100:.2f}"),
    ) if one.excess(need) > 1]
    return CofituneError(
        f"No region of the search space fits; nearest is {region}, which needs {limits.describe(need)}: raise "
        f"{' and '.join(keys)}, or give a search.space with smaller regions."
    )


def _bytes(size: int) -> str:
    unit, name = next(((2**power, name) for power, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")) if size >= 2**power),
                      (1, "B"))
    return f"{math.ceil(100 * size / unit) / 100:.2f} {name}"
