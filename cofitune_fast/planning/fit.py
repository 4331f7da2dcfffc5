"""The cheapest settings under which a training run fits into a budget of device memory.

Cheapest means: first, the numbers of training stay what they are. Checkpointing, exact gradient release, optimizer
states on the host, the prefix cache and micro-batches do not change them (but for roundings in sums). Where that is not
enough, what does change them comes in the order of LOSSES, a combination counting by its worst. What the configuration
asks for itself is no loss, and nothing finer than that is tried. Among equals the least predicted time decides; what
cannot be predicted (the way to the host, where its rate is not given) comes last.

Lagged clipping is not in the list: its first step is an exact one, so it needs no less memory than exact release.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch

from ..ops._storage import STORAGES
from .plan import QUANTIZE, MemoryPlan, Settings
from .planner import Planner
from .step_time import Rates, StepTime, step_time

_STORAGES = tuple(name for name, form in STORAGES.items() if form.weight == torch.bfloat16)
LOSSES = (*(f"storage {name}" for name in _STORAGES[1:]), *(f"quantize {name}" for name in QUANTIZE[1:]))
"""What changes the numbers, from the least to the worst."""


@dataclass(frozen=True)
class Choice:
    """A set of settings: its plan, its step's time, and by what it differs from the numbers asked for."""

    plan: MemoryPlan
    time: StepTime
    losses: tuple[str, ...]

    @property
    def need(self) -> int:
        """The most that the run ever takes, while its prefix cache is filled too."""
        return max(self.plan.peak, self.plan.filling)


@dataclass(frozen=True)
class Fit:
    """chosen: the cheapest set that fits, or None; runner_up: the next one, if there is one; nearest: the set that
    takes least, where nothing fits."""

    chosen: Choice | None
    runner_up: Choice | None
    nearest: Choice | None


def fit(planner: Planner, settings: Settings, budget: int, rates: Rates) -> Fit:
    """Find the cheapest set that fits into `budget` bytes; model, region, batch and length stay as in `settings`.

    The prefix cache is used if `settings` has it, which with a layer below the region is the fastest in any case.
    """
    fitting: list[Choice] = []
    nearest: Choice | None = None
    groups: dict[tuple[str, ...], list[Settings]] = {}
    for candidate in _candidates(settings):
        groups.setdefault(_losses(candidate, settings), []).append(candidate)
    for losses in sorted(groups, key=_harm):
        found = []
        for candidate in groups[losses]:
            plan = planner.plan(candidate)
            choice = Choice(plan, step_time(plan, rates), losses)
            if choice.need <= budget:
                found.append(choice)
            if nearest is None or choice.need < nearest.need:
                nearest = choice
        fitting += sorted(found, key=lambda choice: (choice.time.optimizer is None, choice.time.total, choice.need))
        if len(fitting) > 1:  # what follows changes the numbers more
            break
    chosen, runner_up = (*fitting, None, None)[:2]
    return Fit(chosen, runner_up, None if fitting else nearest)


def longest_that_fits(planner: Planner, settings: Settings, budget: int, rates: Rates) -> int | None:
    """The length, halved until the given settings fit; None where not even 32 tokens do."""
    length = settings.length // 2
    while length >= 32:
        shorter = replace(settings, length=length, response_length=max(1, settings.response_length * length
                                                                       // settings.length))
        plan = planner.plan(shorter)
        if max(plan.peak, plan.filling) <= budget:
            return length
        length //= 2
    return None


def _candidates(settings: Settings) -> Iterator[Settings]:
    storages = ("fp32",) if settings.storage == "fp32" else _STORAGES[_STORAGES.index(settings.storage) :]
    quantize = QUANTIZE[QUANTIZE.index(settings.quantize) :]
    prefix_weights = ("device", "host") if settings.prefix == "cached" else ("device",)
    for storage, quantized, weights, checkpointing, (release, place, micro_batches) in product(
        storages, quantize, prefix_weights, (False, True), _gradients(settings)
    ):
        yield replace(
            settings, storage=storage, quantize=quantized, prefix_weights=weights,
            gradient_checkpointing=checkpointing, gradient_release=release, optimizer_states=place,
            accumulation=micro_batches,
        )


def _gradients(settings: Settings) -> Iterator[tuple[str, str, int]]:
    """(gradient_release, optimizer_states, micro-batches) that go together: released gradients do not accumulate, and
    with states on the host gradients are released anyway."""
    for count in _divisors(settings.batch_size):
        yield "off", "device", count
        yield "off", "host", count
    for release in dict.fromkeys(("exact", settings.gradient_release)):
        if release != "off":
            yield release, "device", 1


def _divisors(rows: int) -> list[int]:
    return [count for count in range(1, rows + 1) if rows % count == 0]


def _losses(candidate: Settings, asked: Settings) -> tuple[str, ...]:
    found = []
    if candidate.storage != asked.storage:
        found.append(f"storage {candidate.storage}")
    if candidate.quantize != asked.quantize:
        found.append(f"quantize {candidate.quantize}")
    return tuple(found)


def _harm(losses: tuple[str, ...]) -> list[int]:
    """Combinations are compared by their worst loss, then by the next; fewer are better."""
    return sorted((LOSSES.index(loss) for loss in losses), reverse=True)
