"""Trainer's arguments: each is honoured, honoured in our own way, or refused with a sentence; none is ignored."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args

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
CHECKPOINT_MINUTES = "checkpoint_minutes"
"""Our own key among Trainer's arguments: a checkpoint is saved this often; 0 saves none by time."""


class Rule(NamedTuple):
    """A Trainer argument that is not taken here.

    Attributes:
        instead: what to do instead, as the end of a sentence.
        accepts: returns True for values that mean what is done here anyway, which are let through.
    """

    instead: str
    accepts: Callable[[Any], bool] = lambda value: not value


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value is None or value in values


_OWN_OPTIMIZER = "the steps are MaskedAdamW's; leave it out (`storage` chooses how large its states are)"
_OWN_ROWS = "rows are encoded and batched by cofitune_fast itself; leave it out"
_ONLY_THE_LOSS = ("no logits are kept during training, so that only the loss can be measured; score the result by "
                  "`cofitune evaluate`")
_HUB = "a checkpoint here is a delta without a model; upload the delta or the merged folder when it is done"
_SHARDED = "leave it out and start the command under torchrun, which shares the model out by FSDP2"
_LIGER = "the loss takes Liger's kernel by itself, on a GPU where the package is installed; leave it out"
_COMPILED = ("a model whose frozen layers are skipped would be compiled anew at every step; leave it out (in a loop of "
             "your own the optimizer's step may be compiled)")
_REENTRANT = Rule("use_reentrant=True would run the backward through all frozen layers; leave it out",
                  lambda value: not (value or {}).get("use_reentrant"))

REFUSED: dict[str, Rule] = {
    "optim": Rule(_OWN_OPTIMIZER, _one_of("adamw_torch", "adamw_torch_fused")),
    **dict.fromkeys(("optim_args", "optim_target_modules"), Rule(_OWN_OPTIMIZER)),
    "label_smoothing_factor": Rule("the loss is the one that `loss` names; leave it out"),
    "fp16": Rule("float16 needs scaled gradients, which masks and clipping here do not know; load the model in "
                 "bfloat16 by model.dtype"),
    **dict.fromkeys(("fp16_full_eval", "bf16_full_eval"),
                    Rule("it would change the weights' dtype; evaluation runs in model.dtype")),
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"), Rule(_LIGER)),
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), Rule(_COMPILED)),
    "auto_find_batch_size": Rule("`cofitune plan --fit` finds the batch size that fits; leave it out"),
    **dict.fromkeys(("include_for_metrics", "batch_eval_metrics", "eval_accumulation_steps", "eval_use_gather_object"),
                    Rule(_ONLY_THE_LOSS)),
    "metric_for_best_model": Rule(_ONLY_THE_LOSS, _one_of("loss", "eval_loss")),
    "greater_is_better": Rule("the best model is the one of the smallest loss; leave it out"),
    **dict.fromkeys(("push_to_hub", "hub_always_push", "hub_model_id", "hub_token", "hub_private_repo", "hub_revision"),
                    Rule(_HUB)),
    **dict.fromkeys(("deepspeed", "fsdp", "parallelism_config", "accelerator_config", "ddp_find_unused_parameters",
                     "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"), Rule(_SHARDED)),
    # Older releases of transformers 5, such as 5.5, fill in a dict of zeros even where FSDP is off.
    "fsdp_config": Rule(_SHARDED, lambda value: not (any(value.values()) if isinstance(value, dict) else value)),
    **dict.fromkeys(("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"), _REENTRANT),
    "label_names": Rule(_OWN_ROWS),
    "train_sampling_strategy": Rule("rows of like length come together wherever that saves padding; leave it out",
                                    _one_of("random", "sequential")),
    "debug": Rule("its hooks would look into layers that are skipped; leave it out"),
}
OURS = {
    "output_dir", "bf16", "remove_unused_columns", "max_grad_norm", "save_strategy", "save_only_model",
    "resume_from_checkpoint", "load_best_model_at_end", "prediction_loss_only", "length_column_name",
    "eval_do_concat_batches", "use_cpu", "hub_strategy",
}
"""Arguments that are honoured in our own way, or mean what is done here anyway: clipping is the optimizer's, saving a
delta's, evaluation measures the loss alone, and rows have no columns."""
HONOURED = {
    "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type",
    "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "gradient_accumulation_steps", "average_tokens_across_devices", "tf32", "activation_checkpointing",
    "gradient_checkpointing", "use_cache", "neftune_noise_alpha", "torch_empty_cache_steps", "logging_strategy",
    "logging_steps", "logging_first_step", "logging_dir", "log_on_each_node", "logging_nan_inf_filter",
    "include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name",
    "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "eval_strategy", "eval_steps",
    "eval_delay", "per_device_eval_batch_size", "eval_on_start", "save_steps", "save_on_each_node", "save_total_limit",
    "enable_jit_checkpoint", "ignore_data_skip", "restore_callback_states_from_checkpoint", "full_determinism", "seed",
    "data_seed", "dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
    "dataloader_in_order", "ddp_backend", "ddp_timeout", "skip_memory_metrics", "do_train", "do_eval", "do_predict",
    "local_rank",
}
"""Arguments that Trainer itself acts on, as ever."""
WITHOUT_INFLUENCE = {
    "logging_strategy", "logging_steps", "logging_first_step", "logging_dir", "log_on_each_node", "log_level",
    "log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
    "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "skip_memory_metrics", CHECKPOINT_MINUTES,
}
"""Arguments that change nothing about what is trained."""


def decisive(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training arguments that can change what comes out."""
    return {key: value for key, value in training.items() if key not in WITHOUT_INFLUENCE}


_SET_BY_ITSELF = ("accelerator_config",)  # TrainingArguments holds an object there in any case


def refuse_ineffective(arguments: TrainingArguments) -> None:
    """Refuse TrainingArguments made by hand that hold what is not taken here.

    Raises:
        CofituneError: one sentence that names the argument and what to do.
    """
    for key, rule in REFUSED.items():
        value = getattr(arguments, key, None)
        value = getattr(value, "value", value)
        if key not in _SET_BY_ITSELF and not rule.accepts(value):
            raise _not_taken(key, value)


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
              **{key: value for key, value in values.items() if key not in (PATIENCE, CHECKPOINT_MINUTES, "bf16")}}
    try:
        arguments = TrainingArguments(**values)
    except ImportError as error:
        raise CofituneError(f"Training needs accelerate: pip install 'cofitune-fast[train]' ({error}).") from None
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CofituneError(f"The training settings are not accepted by transformers: {error}") from None
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
    if values.get("save_strategy") == "best":
        defaults = {"save_total_limit": 1}
    elif values.get("load_best_model_at_end"):
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
        if key == CHECKPOINT_MINUTES:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise CofituneError(f"training.{key} is {value!r}; it must be a number of minutes, or 0 for none.")
            continue
        if key not in known:
            nearest = difflib.get_close_matches(key, sorted({*known, PATIENCE, CHECKPOINT_MINUTES}), n=1)
            hint = f"did you mean training.{nearest[0]}?" if nearest else "see transformers.TrainingArguments."
            raise CofituneError(f"Unknown key training.{key}; {hint}")
        if key == "output_dir":
            raise CofituneError("training.output_dir is set, but the folder of a run is `output`; leave it out.")
        if key in REFUSED and not REFUSED[key].accepts(value):
            raise _not_taken(key, value)
        _check_kind(key, value, known[key])
    for key in ("learning_rate", "num_train_epochs"):
        if not 0 < values.get(key, 1) < math.inf:
            raise CofituneError(f"training.{key} is {values[key]!r}; it must be a number above 0.")
    for key in ("adam_beta1", "adam_beta2"):
        if not 0 <= values.get(key, 0) < 1:
            raise CofituneError(f"training.{key} is {values[key]!r}; it must be at least 0 and below 1.")
    for key in ("max_grad_norm", "weight_decay", "adam_epsilon"):
        if not 0 <= (values.get(key) or 0) < math.inf:
            raise CofituneError(f"training.{key} is {values[key]!r}; it must not be negative.")
    for key in ("seed", "data_seed"):
        if not 0 <= (values.get(key) or 0) < 2**32:
            raise CofituneError(f"training.{key} is {values[key]!r}; it must be at least 0 and below 2**32.")
    for key in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        _require_count(key, values.get(key, 1))
    _check_reports(values.get("report_to", "none"))


def _not_taken(key: str, value: Any) -> CofituneError:
    return CofituneError(f"training.{key} is {value!r}, which is not taken here: {REFUSED[key].instead}.")


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
    else:
        return
    if not right:
        raise CofituneError(f"training.{key} is {value!r}; it must be {wanted}.")


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
