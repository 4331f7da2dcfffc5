"""Trainer's arguments: each is honoured, honoured in our own way, or refused with a sentence; none is ignored."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..errors import CofituneError
from ..memory.settings import MemorySettings
from ..models import dtype_name
from ..models.sharded import is_sharded
from .rates import FULL_RATE

# Trainer's own defaults except where they do not suit a command-line run or a region.
DEFAULTS: dict[str, Any] = {
    "learning_rate": FULL_RATE,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "adam_beta2": 0.95,
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": 10,
    "disable_tqdm": True,
}

PATIENCE = "early_stopping_patience"
"""Our own key among Trainer's arguments: training stops after this many evaluations without a better loss."""


class Rule(NamedTuple):
    """A Trainer argument that has no effect here.

    Attributes:
        accepts: returns True for values that change nothing, which are let through.
        instead: what to do instead, as the end of a sentence.
    """

    accepts: Callable[[Any], bool]
    instead: str


def _unset(value: Any) -> bool:
    return not value


_OWN_OPTIMIZER = "the steps are MaskedAdamW's; leave it out (`storage` chooses how large its states are)"
_OWN_ROWS = "rows are encoded and batched by cofitune_fast itself; leave it out"
_ONLY_THE_LOSS = ("no logits are kept during training, so that only the loss can be measured; score the result by "
                  "`cofitune evaluate`")
_HUB = "a checkpoint here is a delta without a model; upload the delta or the merged folder when it is done"
_SHARDED = "leave it out and start the command under torchrun, which shares the model out by FSDP2"
_LIGER = "the loss takes Liger's kernel by itself, on a GPU where the package is installed; leave it out"
_COMPILED = ("a model whose frozen layers are skipped would be compiled anew at every step; leave it out (in a loop of "
             "your own the optimizer's step may be compiled)")

_REENTRANT = "use_reentrant=True would run the backward through all frozen layers; leave it out"


def _not_reentrant(value: Any) -> bool:
    return not (value or {}).get("use_reentrant")


REFUSED: dict[str, Rule] = {
    "optim": Rule(lambda value: str(value) in ("adamw_torch", "adamw_torch_fused"), _OWN_OPTIMIZER),
    "optim_args": Rule(_unset, _OWN_OPTIMIZER),
    "optim_target_modules": Rule(_unset, _OWN_OPTIMIZER),
    "label_smoothing_factor": Rule(_unset, "the loss is the one that `loss` names; leave it out"),
    "fp16": Rule(_unset, "float16 needs scaled gradients, which masks and clipping here do not know; load the model "
                         "in bfloat16 by model.dtype"),
    "fp16_full_eval": Rule(_unset, "it would change the weights' dtype; evaluation runs in model.dtype"),
    "bf16_full_eval": Rule(_unset, "it would change the weights' dtype; evaluation runs in model.dtype"),
    "use_liger_kernel": Rule(_unset, _LIGER),
    "liger_kernel_config": Rule(_unset, _LIGER),
    "torch_compile": Rule(_unset, _COMPILED),
    "torch_compile_backend": Rule(_unset, _COMPILED),
    "torch_compile_mode": Rule(_unset, _COMPILED),
    "auto_find_batch_size": Rule(_unset, "`cofitune plan --fit` finds the batch size that fits; leave it out"),
    "include_for_metrics": Rule(_unset, _ONLY_THE_LOSS),
    "batch_eval_metrics": Rule(_unset, _ONLY_THE_LOSS),
    "push_to_hub": Rule(_unset, _HUB),
    "hub_always_push": Rule(_unset, _HUB),
    "deepspeed": Rule(_unset, _SHARDED),
    "fsdp": Rule(_unset, _SHARDED),
    "fsdp_config": Rule(_unset, _SHARDED),
    "parallelism_config": Rule(_unset, _SHARDED),
    "accelerator_config": Rule(_unset, _SHARDED),
    "gradient_checkpointing_kwargs": Rule(_not_reentrant, _REENTRANT),
    "activation_checkpointing_kwargs": Rule(_not_reentrant, _REENTRANT),  # its name in newer releases
    "label_names": Rule(_unset, _OWN_ROWS),
    "remove_unused_columns": Rule(lambda value: True, _OWN_ROWS),  # rows have no columns to remove
}


def refuse_ineffective(arguments: TrainingArguments) -> None:
    """Refuse TrainingArguments made by hand that hold what would have no effect here.

    Raises:
        CofituneError: one sentence that names the argument and what to do.
    """
    for key, rule in REFUSED.items():
        value = getattr(arguments, key, None)
        value = getattr(value, "value", value)
        if key != "accelerator_config" and not rule.accepts(value):  # that one is an object in any case
            raise _no_effect(key, value)


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
    _refuse(values)
    patience = values.get(PATIENCE)
    values = {**DEFAULTS, **_best_model(values), "output_dir": str(output_dir),
              "dataloader_pin_memory": torch.cuda.is_available(),
              **{key: value for key, value in values.items() if key not in (PATIENCE, "bf16")}}
    try:
        arguments = TrainingArguments(**values)
    except ImportError as error:
        raise CofituneError(f"Training needs accelerate: pip install 'cofitune-fast[train]' ({error}).") from None
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CofituneError(f"The training settings are not accepted by transformers: {error}") from None
    _check_scheduler(arguments)
    for key, wanted in ((PATIENCE, patience), ("load_best_model_at_end", arguments.load_best_model_at_end)):
        if wanted and arguments.eval_strategy == "no":
            raise CofituneError(f"training.{key} needs evaluations; set training.eval_strategy to steps or epoch.")
    return arguments


def check_arguments(training: Mapping[str, Any]) -> None:
    """Refuse wrong training arguments before anything is loaded.

    Raises:
        CofituneError: as `training_arguments`.
    """
    training_arguments({key: value for key, value in training.items() if key != "resume_from_checkpoint"}, "checked")


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


def _best_model(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of a run that keeps its best model or stops early: save at each evaluation, compare by the
    loss.
    """
    defaults: dict[str, Any] = {}
    if values.get("load_best_model_at_end"):
        defaults = {"save_strategy": values.get("eval_strategy", "no"), "save_total_limit": 1}
        if "eval_steps" in values:
            defaults["save_steps"] = values["eval_steps"]
    return {**defaults, "metric_for_best_model": "loss"} if defaults or PATIENCE in values else {}


def _refuse(values: Mapping[str, Any]) -> None:
    known = {field.name: field for field in fields(TrainingArguments) if field.init}
    for key, value in values.items():
        if key == PATIENCE:
            _require_count(key, value)
            continue
        if key not in known:
            nearest = difflib.get_close_matches(key, sorted({*known, PATIENCE}), n=1)
            hint = f"did you mean training.{nearest[0]}?" if nearest else "see transformers.TrainingArguments."
            raise CofituneError(f"Unknown key training.{key}; {hint}")
        if key in REFUSED and not REFUSED[key].accepts(value):
            raise _no_effect(key, value)
        _check_kind(key, value, known[key])
    for key in ("learning_rate", "num_train_epochs"):
        if values.get(key, 1) <= 0:
            raise CofituneError(f"training.{key} is {values[key]!r}; it must be a number above 0.")
    for key in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        _require_count(key, values.get(key, 1))
    _check_reports(values.get("report_to", "none"))


def _no_effect(key: str, value: Any) -> CofituneError:
    return CofituneError(f"training.{key} is {value!r}, which has no effect here: {REFUSED[key].instead}.")


def _check_kind(key: str, value: Any, field: Field[Any]) -> None:
    """Refuse a text where a number or a bool is needed, which Trainer would notice only in the middle of a run."""
    if field.type in (bool, bool | None):
        right, kind = isinstance(value, bool), "true or false"
    elif isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
        right, kind = isinstance(value, (int, float)) and not isinstance(value, bool), "a number"
    else:
        return
    if not right and value is not None:
        raise CofituneError(f"training.{key} is {value!r}; it must be {kind}.")


def _require_count(key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CofituneError(f"training.{key} is {value!r}; it must be a whole number of at least 1.")


def _check_reports(wanted: Any) -> None:
    available = get_available_reporting_integrations()
    for name in [wanted] if isinstance(wanted, str) else wanted or []:
        if name in ("none", "all") or name in available:
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise CofituneError(f"training.report_to names {name!r}, which transformers does not know; choose from "
                                f"none, all, {', '.join(sorted(INTEGRATION_TO_CALLBACK))}.")
        raise CofituneError(f"training.report_to names {name}, which is not installed; install it, or leave it out.")


def _check_scheduler(arguments: TrainingArguments) -> None:
    """Build the scheduler once on a dummy optimizer, because some schedulers need arguments of their own."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        get_scheduler(arguments.lr_scheduler_type, optimizer, num_warmup_steps=1, num_training_steps=4,
                      scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs or {}))
    except (TypeError, ValueError) as error:
        raise CofituneError(
            f"training.lr_scheduler_type is {arguments.lr_scheduler_type.value}, which needs other "
            f"training.lr_scheduler_kwargs than {arguments.lr_scheduler_kwargs or 'none'}: {error}.") from None
