"""Find the cheapest settings with which a training run fits into a budget of memory.

The first criterion is that the numbers of training do not change. Checkpointing, exact gradient release, optimizer
states on the host, the prefix cache and micro-batches do not change them, apart from the rounding of sums. If these are
not enough, settings that change the numbers follow in the order of LOSSES; a combination ranks by its worst member. The
settings of the configuration itself are no loss, and no finer ones are tried.

The second criterion is the predicted time. Settings whose time cannot be predicted come last: those that need the
transfer to the host if its rate is not known.

Lagged clipping is not tried. Its first step is an exact one, so it needs as much memory as exact release.
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
"""Settings that change the numbers of training, from the least harmful to the most."""


@dataclass(frozen=True)
class Choice:
    """Settings with their plan, the time of a step, and the members of LOSSES that they add to the asked ones."""

    plan: MemoryPlan
    time: StepTime
    losses: tuple[str, ...]

    @property
    def need(self) -> int:
        return self.plan.need


@dataclass(frozen=True)
class Fit:
    """Result of `fit`. chosen: the cheapest settings that fit, or None. runner_up: the second cheapest, or None.
    nearest: if nothing fits, the settings with the lowest peak."""

    chosen: Choice | None
    runner_up: Choice | None
    nearest: Choice | None


def fit(planner: Planner, settings: Settings, budget: int, rates: Rates) -> Fit:
    """Find the cheapest settings that fit into `budget` bytes. Model, region, batch size and length stay the same.

    The prefix cache is used if `settings` has it. It is always the fastest way if a layer lies below the region.
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
        if len(fitting) > 1:  # the groups that follow change the numbers more
            break
    chosen, runner_up = (*fitting, None, None)[:2]
    return Fit(chosen, runner_up, None if fitting else nearest)


def longest_that_fits(planner: Planner, settings: Settings, budget: int, rates: Rates) -> int | None:
    """Halve the length until the given settings fit; None if even 32 tokens do not."""
    length = settings.length // 2
    while length >= 32:
        shorter = replace(settings, length=length, response_length=max(1, settings.response_length * length
                                                                       // settings.length))
        if planner.plan(shorter).need <= budget:
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
    """Yield the possible combinations of (gradient_release, optimizer_states, micro-batches).

    Released gradients cannot be accumulated, and states on the host release gradients anyway.
    """
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
    """Sort key of a combination: its worst loss first, then the next. Fewer losses are better."""
    return sorted((LOSSES.index(loss) for loss in losses), reverse=True)
