"""Trainer's arguments: each is honoured, honoured in our own way, or refused with a sentence; none is ignored."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import Field, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import torch
from torch import nn
from transformers import TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..errors import CofituneError
from ..memory.settings import MemorySettings
from ..models import dtype_name
from ..models.sharded import is_sharded
from .argument_rules import (
    CHECKPOINT_MINUTES,
    CHOICES,
    DEFAULTS,
    PATIENCE,
    RANGES,
    REFUSED,
    RENAMED,
    WITHOUT_INFLUENCE,
)


def decisive(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training arguments that can change what comes out."""
    return {key: value for key, value in training.items() if key not in WITHOUT_INFLUENCE}


_SET_BY_ITSELF = ("accelerator_config",)  # TrainingArguments holds an object there in any case


def refuse_ineffective(arguments: TrainingArguments) -> None:
    """Refuse TrainingArguments made by hand that hold what is not taken here.

    Raises:
        CofituneError: one sentence that names the argument and what to do.
    """
    if not isinstance(arguments, TrainingArguments):
        raise CofituneError(f"args is {type(arguments).__name__}, and the trainer needs transformers' "
                            "TrainingArguments; make them by cofitune_fast.training.training_arguments.")
    for key, rule in REFUSED.items():
        value = getattr(arguments, key, None)
        value = getattr(value, "value", value)
        if key not in _SET_BY_ITSELF and not rule.accepts(value):
            raise _not_taken(key, value)
    if arguments.resume_from_checkpoint:
        raise CofituneError("args.resume_from_checkpoint has no effect here; give it to CoFiTuneTrainer.train.")
    for key in RANGES:
        _check_range(key, getattr(arguments, key, None))
    _check_without_effect({key: getattr(arguments, key, None) for key in (
        "lr_scheduler_type", "lr_scheduler_kwargs", "dataloader_num_workers", "dataloader_persistent_workers",
        "dataloader_prefetch_factor")})
    _check_scheduler(arguments)


def check_sharded(model: nn.Module, args: TrainingArguments, memory: MemorySettings) -> None:
    """Refuse a model that is not sharded where several processes train, and settings that work in one process only.

    Raises:
        CofituneError: one sentence that names the setting and what it must be.
    """
    if not is_sharded(model):
        raise CofituneError(f"{args.world_size} processes train together, but the model is not sharded over them: load "
                            "it by load_model after torchrun has started them, or start one process.")
    alone = {"memory.gradient_release": (memory.gradient_release, "off"),
             "memory.optimizer_states": (memory.optimizer_states, "device"),
             "memory.prefix_weights": (memory.prefix_weights, "device"),
             "training.average_tokens_across_devices": (args.average_tokens_across_devices, True)}
    for name, (value, needed) in alone.items():
        if value != needed:
            raise CofituneError(f"{name} is {value}, which works in one process only; under torchrun it must be "
                                f"{needed}, as it is by default.")


def training_arguments(values: Mapping[str, Any], output_dir: str | Path) -> TrainingArguments:
    """Build TrainingArguments from plain values over our DEFAULTS.

    It needs no model, so that wrong arguments are refused before anything is loaded.

    Raises:
        CofituneError: one sentence that names the first wrong argument and what to do.
    """
    values = {key: value for key, value in values.items() if key != "resume_from_checkpoint"}  # train_region's own
    _refuse(values)
    patience = values.get(PATIENCE)
    values = {**DEFAULTS, **_saving(values), "output_dir": str(output_dir),
              "dataloader_pin_memory": torch.cuda.is_available(),
              **{key: value for key, value in values.items() if key not in (PATIENCE, CHECKPOINT_MINUTES, "bf16")}}
    try:
        arguments = TrainingArguments(**values)
    except ImportError as error:
        raise CofituneError(f"Training needs accelerate: pip install 'cofitune-fast[train]' ({error}).") from None
    except (TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise CofituneError(f"The training settings are not accepted by transformers: {reason}.") from None
    _check_scheduler(arguments)
    for key, wanted in ((PATIENCE, patience), ("load_best_model_at_end", arguments.load_best_model_at_end),
                        ("save_strategy", arguments.save_strategy == "best")):
        if wanted and arguments.eval_strategy == "no":
            raise CofituneError(f"training.{key} needs evaluations; set training.eval_strategy to steps or epoch.")
    return arguments


def check_arguments(training: Mapping[str, Any]) -> None:
    """Refuse wrong training arguments before anything is loaded.

    Raises:
        CofituneError: as `training_arguments`.
    """
    resume = training.get("resume_from_checkpoint")
    if not isinstance(resume, (bool, str, NoneType)):
        raise CofituneError(f"training.resume_from_checkpoint is {resume!r}; it must be true or the folder of a "
                            "checkpoint.")
    training_arguments(training, "checked")


def evaluates(training: Mapping[str, Any]) -> bool:
    """True if a training reads evaluation rows."""
    return str(training.get("eval_strategy", "no")) != "no" or bool(training.get("eval_on_start"))


def without_evaluations(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training arguments less those about evaluations, for a run that is judged in another way."""
    ours = (PATIENCE, "load_best_model_at_end", "metric_for_best_model", "greater_is_better")
    return {key: value for key, value in training.items() if key not in ours and not key.startswith("eval_")}


def check_precision(training: Mapping[str, Any], model: nn.Module) -> None:
    """Check `bf16` against the model: only a model loaded in bfloat16 trains in bfloat16.

    Raises:
        CofituneError: bf16 is true, and the model has another dtype.
    """
    if training.get("bf16") and model.dtype != torch.bfloat16:
        raise CofituneError(f"training.bf16 is true, but the model is loaded in {dtype_name(model)}; set model.dtype: "
                            "bfloat16, or leave training.bf16 out.")


def _saving(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of a run that names when to save, keeps its best model or stops early: it saves at each
    evaluation and compares by the loss.
    """
    defaults: dict[str, Any] = {}
    if values.get("save_strategy") == "best":
        defaults = {"save_total_limit": 1}
    elif values.get("load_best_model_at_end"):
        defaults = {"save_strategy": values.get("eval_strategy", "no")}
        if not {"save_strategy", "save_steps"} & values.keys():  # nobody asked for checkpoints
            defaults["save_total_limit"] = 1
        if "eval_steps" in values:
            defaults["save_steps"] = values["eval_steps"]
    by_loss = {"metric_for_best_model": "loss"} if defaults or PATIENCE in values else {}
    if "save_steps" in values:
        defaults.setdefault("save_strategy", "steps")
    return {**defaults, **by_loss}


def _refuse(values: Mapping[str, Any]) -> None:
    known = {field.name: field for field in fields(TrainingArguments) if field.init}
    for key, value in values.items():
        if key == PATIENCE:
            _require_count(key, value)
            continue
        if key == CHECKPOINT_MINUTES:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise CofituneError(f"training.{key} is {value!r}; it must be a number of minutes, or 0 for none.")
            continue
        if key not in known:
            raise CofituneError(f"Unknown key training.{key}; {_instead(key, {*known, PATIENCE, CHECKPOINT_MINUTES})}")
        if key == "output_dir":
            raise CofituneError("training.output_dir is set, but the folder of a run is `output`; leave it out.")
        _check_mapping(key, value)
        if key in REFUSED and not REFUSED[key].accepts(value):
            raise _not_taken(key, value)
        _check_kind(key, value, known[key])
        _check_range(key, value)
        if key in CHOICES:
            _check_choice(key, value)
    _check_without_effect(values)
    _check_reports(values.get("report_to", "none"))


def _instead(key: str, known: Collection[str]) -> str:
    """Return what to do about a key that is not known, as the end of a sentence."""
    if key in RENAMED:
        return RENAMED[key] + "."
    nearest = difflib.get_close_matches(key, sorted(known), n=1)
    return f"did you mean training.{nearest[0]}?" if nearest else "see transformers.TrainingArguments."


def _not_taken(key: str, value: Any) -> CofituneError:
    return CofituneError(f"training.{key} is {value!r}, which is not taken here: {REFUSED[key].instead}.")


def _check_mapping(key: str, value: Any) -> None:
    if key.endswith("_kwargs") and not isinstance(value, (Mapping, NoneType)):
        raise CofituneError(f"training.{key} is {value!r}; it must be keys with values, such as "
                            '{"num_cycles": 2}.')


def _check_choice(key: str, value: Any) -> None:
    chosen = getattr(value, "value", value)
    if not any(chosen is one or (isinstance(one, str) and chosen == one) for one in CHOICES[key]):
        words = ", ".join(one if isinstance(one, str) else str(one).lower() for one in CHOICES[key] if one is not None)
        raise CofituneError(f"training.{key} is {value!r}; choose one of {words}.")


def _check_range(key: str, value: Any) -> None:
    if key not in RANGES or value is None:
        return
    if not math.isfinite(value) or not RANGES[key].holds(value):
        raise CofituneError(f"training.{key} is {value!r}; it must be {RANGES[key].words}.")


def _check_without_effect(values: Mapping[str, Any]) -> None:
    """Refuse arguments that another argument keeps from having an effect."""
    scheduler = str(getattr(values.get("lr_scheduler_type"), "value", values.get("lr_scheduler_type")))
    if scheduler in ("constant", "constant_with_warmup") and values.get("lr_scheduler_kwargs"):
        raise CofituneError(f"training.lr_scheduler_kwargs has no effect on the scheduler {scheduler}; leave it out.")
    if scheduler in ("constant", "reduce_lr_on_plateau", "greedy") and values.get("warmup_steps"):
        raise CofituneError(f"training.warmup_steps has no effect on the scheduler {scheduler}, which has no warm-up; "
                            "leave it out, or choose constant_with_warmup.")
    if not evaluates(values):
        for key in ("eval_steps", "eval_delay", "do_eval"):
            if values.get(key):
                raise CofituneError(f"training.{key} has no effect without evaluations; set training.eval_strategy to "
                                    "steps or epoch, or leave it out.")
    if not values.get("dataloader_num_workers"):
        for key in ("dataloader_prefetch_factor", "dataloader_persistent_workers",
                    "dataloader_multiprocessing_context"):
            if values.get(key):
                raise CofituneError(f"training.{key} is about worker processes; set training.dataloader_num_workers to "
                                    "at least 1, or leave it out.")


def _check_kind(key: str, value: Any, field: Field[Any]) -> None:
    """Check the kind of a plain value now, because Trainer finds out in the middle of a run."""
    kinds = set(get_args(field.type) or (field.type,))
    if value is None:
        right, wanted = NoneType in kinds or field.default is None, "given a value, or left out"
    elif kinds <= {bool, NoneType}:
        right, wanted = isinstance(value, bool), "true or false"
    elif kinds <= {int, NoneType}:
        right, wanted = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif kinds <= {int, float, NoneType}:
        right, wanted = isinstance(value, (int, float)) and not isinstance(value, bool), "a number"
    elif kinds <= {str, NoneType} and key not in CHOICES:
        right, wanted = isinstance(value, str), "text"
    else:
        return
    if not right:
        raise CofituneError(f"training.{key} is {value!r}; it must be {wanted}.")


def _require_count(key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CofituneError(f"training.{key} is {value!r}; it must be a whole number of at least 1.")


def _check_reports(wanted: Any) -> None:
    names = [wanted] if isinstance(wanted, str) else [] if wanted is None else wanted
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise CofituneError(f"training.report_to is {wanted!r}; it must be the name of a tracker, or a list of names.")
    if len(names) > 1 and {"none", "all"} & set(names):
        raise CofituneError(f"training.report_to is {wanted!r}; none and all each stand alone.")
    available = get_available_reporting_integrations()
    for name in names:
        if name in ("none", "all") or name in available:
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise CofituneError(f"training.report_to names {name!r}, which transformers does not know; choose from "
                                f"none, all, {', '.join(sorted(INTEGRATION_TO_CALLBACK))}.")
        raise CofituneError(f"training.report_to names {name}, which is not installed; install it, or leave it out.")


def _check_scheduler(arguments: TrainingArguments) -> None:
    """Step the scheduler on a dummy optimizer, because some schedulers need arguments of their own."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    kind, settings = arguments.lr_scheduler_type.value, arguments.lr_scheduler_kwargs
    try:
        scheduler = get_scheduler(kind, optimizer, num_warmup_steps=1, num_training_steps=4,
                                  scheduler_specific_kwargs=dict(settings or {}))
        optimizer.step()
        for _ in range(4):
            scheduler.step(*([1.0] if kind in ("reduce_lr_on_plateau", "greedy") else []))
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise CofituneError(f"training.lr_scheduler_type is {kind}, which needs other training.lr_scheduler_kwargs "
                            f"than {settings or 'none'}: {str(error).rstrip('.')}.") from None
