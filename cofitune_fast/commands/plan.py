"""Predict memory and time of a training step, or find settings that fit a card."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
import typer

from ..config import Config
from ..display import shown_progress
from ..errors import CofituneError
from ..memory.abilities import abilities_line
from ..memory.settings import parse_size
from ..models.loading import plain_folder
from ..planning.fit import Choice, fit, longest_that_fits
from ..planning.plan import PARTS, MemoryPlan, Settings
from ..planning.planner import Planner, fake_model
from ..planning.step_time import Rates, StepTime, measure_rates, step_time
from ..progress import progress
from ..regions import DEFAULT_REGION, Region, resolve_layout
from ..training import check_arguments
from .app import AsJson, ConfigFile, command, console, emit, tell
from .planned import planned_settings, planned_storage
from .setup import read_config

_BATCH = "training.per_device_train_batch_size"


class NothingFits(CofituneError):
    """No settings of a region fit into a budget."""


@command
def plan(
    context: typer.Context,
    config: ConfigFile = None,
    as_json: AsJson = False,
    budget: Annotated[str | None, typer.Option("--fit", help="Find settings within a budget such as 24GiB.")] = None,
) -> None:
    """Predict memory and time of a training step from the model's configuration; no weights are loaded."""
    settings = read_config(context, config)
    with shown_progress(console), progress("Measuring this machine and predicting"):
        content, text = plan_run(settings, budget)
    emit(content, as_json, lambda: tell(text))


def plan_run(settings: Config, budget: str | None = None) -> tuple[dict[str, Any], str]:
    """Plan the run of `settings`, or with a `budget` such as "24GiB" the cheapest settings that fit into it.

    Returns:
        The result as plain values, and as text.

    Raises:
        CofituneError: the budget is no size or nothing fits it, a setting is wrong, there is no model configuration.
    """
    limit = parse_size(budget, "--fit") if budget is not None else None
    planner, wanted = _prepared(settings)
    rates = _rates(settings, planner, wanted)
    if limit is None:
        plan = planner.plan(wanted)
        return _described(Choice(plan, step_time(plan, rates), ()), planner, rates, settings)
    found = fit(planner, wanted, limit, rates)
    if found.chosen is None:
        raise NothingFits(_nothing_fits(found.nearest, planner, limit, rates))
    content, text = _described(found.chosen, planner, rates, settings)
    content["fit"] = {"budget": limit, "settings": keys_of_plan(found.chosen.plan), "losses": list(found.chosen.losses)}
    losses = ", ".join(found.chosen.losses)
    change = f"; they change the numbers of the training ({losses})" if losses else ""
    lines = [f"The cheapest settings within {gib(limit)}{change}:", *_yaml_lines(found.chosen), "", text]
    if found.runner_up is not None:
        other = found.runner_up
        content["fit"]["runner_up"] = {"settings": keys_of_plan(other.plan), "peak": other.need,
                                       "time": other.time.to_dict(), "losses": list(other.losses)}
        lines += ["", f"Next best, {gib(other.need)} and {_seconds(other.time)} a step: {_options(other)}"]
    return content, "\n".join(lines)


def plan_within(settings: Config, limit: int) -> tuple[MemoryPlan, tuple[str, ...]]:
    """Plan the settings as they are if they fit into `limit` bytes, else the cheapest ones that do.

    Returns:
        The plan, and the members of `planning.fit.LOSSES` that it adds.

    Raises:
        NothingFits: no settings of this region and these lengths fit.
        CofituneError: as `plan_run`.
    """
    planner, wanted = _prepared(settings)
    plan = planner.plan(wanted)
    if plan.need <= limit:
        return plan, ()
    rates = _rates(settings, planner, wanted)
    found = fit(planner, wanted, limit, rates)
    if found.chosen is None:
        raise NothingFits(_nothing_fits(found.nearest, planner, limit, rates))
    return found.chosen.plan, found.chosen.losses


# From the configuration ----------------------------------------------------------------------------------------------


def _prepared(settings: Config) -> tuple[Planner, Settings]:
    """Return the planner of the run's model and region, and the settings of its training."""
    if settings.model is None:
        raise CofituneError("This command needs model: give --model FOLDER.")
    check_arguments(settings.training)
    settings.region = settings.region or DEFAULT_REGION
    folder = plain_folder(settings.model.path, settings.model.gguf_file)
    storage = planned_storage(settings, folder)
    dtype = torch.float32 if storage == "fp32" else torch.bfloat16
    model = fake_model(folder, dtype, settings.model.attn_implementation, settings.model.roles)
    planner = Planner(model, Region.parse(settings.region))
    return planner, planned_settings(settings, planner, storage)


def _rates(settings: Config, planner: Planner, wanted: Settings) -> Rates:
    layout = resolve_layout(planner.model)
    widest = max(block.neurons for block in layout.blocks.values()) or layout.hidden_size
    return measure_rates(
        layout.hidden_size, widest, wanted.step().rows * wanted.length, planner.model.dtype,
        flops=settings.plan.flops, bandwidth=settings.plan.bandwidth, transfer=settings.plan.transfer,
    )


# As values and as text -----------------------------------------------------------------------------------------------


def _described(choice: Choice, planner: Planner, rates: Rates, settings: Config) -> tuple[dict[str, Any], str]:
    plan, time, used = choice.plan, choice.time, choice.plan.settings
    anchored = f" and {used.anchor_rows} rows of the anchor with each batch" if used.anchor_rows else ""
    content = {**plan.to_dict(), "need": choice.need, "time": time.to_dict(), "rates": vars(rates)}
    lines = [
        f"{plan.region}: {plan.trained_parameters:,} of {plan.total_parameters:,} parameters, {used.batch_size} x "
        f"{used.length} tokens{anchored}, {used.response_length} of each row predicted, {used.storage}",
        *(f"  {part.replace('_', ' '):20}{gib(plan.parts[part]):>12}" for part in PARTS if plan.parts[part]),
        f"  {'peak':20}{gib(plan.peak):>12}   in the phase {plan.phase}; "
        + ", ".join(f"{phase} {gib(size)}" for phase, size in plan.phases.items() if phase != plan.phase),
    ]
    if plan.filling:
        when = ("in the first epoch, which computes the prefix" if used.prefix_weights == "device" else
                "before the training, to fill the cache, and after it")
        lines.append(f"  {'otherwise':20}{gib(plan.filling):>12}   {when}")
    for name, size in plan.host.items():
        lines.append(f"  {'on the host':20}{gib(size):>12}   {name.replace('_', ' ')}")
    if plan.host and not used.own_memory:
        lines.append(f"  {'in all':20}{gib(plan.need):>12}   as the CPU's memory is the host's")
    if used.prefix == "cached":
        rows = settings.plan.rows or settings.data.limit
        size = plan.cache_per_row * (rows or 1)
        over = size > parse_size(settings.memory.prefix_cache_limit, "memory.prefix_cache_limit")
        what = f"prefix cache of {f'{rows} rows' if rows else 'a row'} of full length"
        remark = "; memory.prefix_cache_limit is less: raise it, or there is no cache" if over else ""
        lines.append(f"  {'on disk':20}{gib(size):>12}   {what}{remark}")
        content["cache"] = size if rows else None
    optimizer = "not predicted" if time.optimizer is None else f"{time.optimizer:.3g} s"
    lines.append(f"  {'time per step':20}{_seconds(time):>12}   matrix products {time.products:.3g} s, other operators "
                 f"{time.rest:.3g} s, optimizer {optimizer}")
    if used.prefix == "cached" and used.prefix_weights == "device":
        first = step_time(planner.plan(replace(used, prefix="filled")), rates)
        content["first_epoch_time"] = first.to_dict()
        lines.append(f"  {'':20}{_seconds(first):>12}   in the first epoch")
    if time.optimizer is None:
        lines.append("  The way to the host and the step there are not predicted; give --plan.transfer BYTES/S for it.")
    content["speed"] = abilities_line(planner.model, planner.prefix_layers)
    lines.append(f"  {content['speed']}")
    lines.append(f"  at {rates.flops / 1e12:.3g} TFLOP/s and {rates.bandwidth / 1e9:.3g} GB/s, {rates.source}")
    return content, "\n".join(lines)


def keys_of_plan(plan: MemoryPlan) -> dict[str, Any]:
    """Map the planned settings to keys of the configuration."""
    used = plan.settings
    return {
        _BATCH: used.rows, "training.gradient_accumulation_steps": used.accumulation,
        "training.gradient_checkpointing": used.gradient_checkpointing,
        "memory.gradient_release": used.gradient_release, "memory.optimizer_states": used.optimizer_states,
        "memory.prefix_cache": "auto" if used.prefix == "cached" else "off",
        "memory.prefix_weights": used.prefix_weights, "model.quantize": used.quantize, "storage": used.storage,
    }


def _yaml_lines(choice: Choice) -> list[str]:
    lines, section = [], None
    for key, value in sorted(keys_of_plan(choice.plan).items(), key=lambda item: "." not in item[0]):
        name, dot, inner = key.partition(".")
        if dot and name != section:
            lines.append(f"{name}:")
        section = name if dot else None
        value = {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value
        lines.append(f"  {inner}: {value}" if dot else f"{name}: {value}")
    return [f"  {line}" for line in lines]


def _options(choice: Choice) -> str:
    return " ".join(f"--{key} {str(value).lower()}" for key, value in keys_of_plan(choice.plan).items())


def _nothing_fits(nearest: Choice, planner: Planner, limit: int, rates: Rates) -> str:
    used = nearest.plan.settings
    weights = nearest.plan.parts["frozen_weights"] + nearest.plan.parts["region_weights"]
    if (length := longest_that_fits(planner, used, limit, rates)) is not None:
        remedy = f"with data.max_length {length} that fits"
    elif weights > limit:
        remedy = f"its weights alone take {gib(weights)}; a smaller region, a smaller model or that budget would do"
    else:
        remedy = "a region of fewer layers or roles, or that budget, would do"
    return f"Nothing fits into {gib(limit)}: nearest is {_options(nearest)} with {gib(nearest.need)}; {remedy}."


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.2f} MiB"


def _seconds(time: StepTime) -> str:
    return f"{time.total:.3g} s" + (" and more" if time.optimizer is None else "")
