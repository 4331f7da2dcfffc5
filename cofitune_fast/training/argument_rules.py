"""Tables of Trainer's arguments: our defaults, which are taken, refused or renamed, and the values they may have."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from transformers import SchedulerType
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy
from transformers.training_args import trainer_log_levels

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
_HUB = ("a checkpoint here is a delta without a model; when the run is done, push its delta or the merged folder by "
        "`cofitune push`")
_SHARDED = "leave it out and start the command under torchrun, which shares the model out by FSDP2"
_LIGER = "the loss takes Liger's kernel by itself, on a GPU where the package is installed; leave it out"
_COMPILED = ("a model whose frozen layers are skipped would be compiled anew at every step; leave it out (in a loop of "
             "your own the optimizer's step may be compiled)")
_COMMANDS = "the command that is run decides what is done; leave it out"
_CHECKPOINTING = {"use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop"}
_REENTRANT = Rule("use_reentrant=True would run the backward through all frozen layers, and torch.utils.checkpoint "
                  f"takes only {', '.join(sorted(_CHECKPOINTING - {'use_reentrant'}))} beside it; leave it out",
                  lambda value: not value or (value.keys() <= _CHECKPOINTING and not value.get("use_reentrant")))

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
    "do_predict": Rule(_COMMANDS),
}
OURS = {
    "output_dir", "bf16", "remove_unused_columns", "max_grad_norm", "save_strategy", "save_only_model",
    "resume_from_checkpoint", "load_best_model_at_end", "prediction_loss_only", "length_column_name",
    "eval_do_concat_batches", "use_cpu", "hub_strategy", "do_train", "do_eval",
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
    "dataloader_in_order", "ddp_backend", "ddp_timeout", "skip_memory_metrics", "local_rank",
}
"""Arguments that Trainer itself acts on, as ever."""
WITHOUT_INFLUENCE = {
    "logging_strategy", "logging_steps", "logging_first_step", "logging_dir", "log_on_each_node", "log_level",
    "log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
    "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "skip_memory_metrics", CHECKPOINT_MINUTES,
}
"""Arguments that change nothing about what is trained."""


RENAMED = {
    "evaluation_strategy": "write training.eval_strategy",
    "warmup_ratio": "write the fraction as training.warmup_steps, such as 0.03",
    "group_by_length": "rows of like length come together wherever that saves padding; leave it out",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "no_cuda": "write training.use_cpu",
    "per_gpu_train_batch_size": "write training.per_device_train_batch_size",
    "overwrite_output_dir": "leave it out",
    "save_safetensors": "all files are safetensors; leave it out",
}
"""Arguments of older releases of transformers, and what to write instead."""

CHOICES: dict[str, Collection[Any]] = {
    "eval_strategy": [one.value for one in IntervalStrategy],
    "logging_strategy": [one.value for one in IntervalStrategy],
    "save_strategy": [one.value for one in SaveStrategy],
    "lr_scheduler_type": [one.value for one in SchedulerType],
    "hub_strategy": [one.value for one in HubStrategy],
    "log_level": list(trainer_log_levels),
    "log_level_replica": list(trainer_log_levels),
    "include_num_input_tokens_seen": [True, False, "all", "non_padding", "no"],
    "dataloader_multiprocessing_context": [None, "fork", "spawn", "forkserver"],
}
"""Arguments that name one of some words."""


class Range(NamedTuple):
    """Values that a number may have, and how a sentence says it."""

    words: str
    holds: Callable[[Any], bool]


_POSITIVE = Range("a number above 0", lambda value: value > 0)
_NOT_NEGATIVE = Range("a number of at least 0", lambda value: value >= 0)
_DECAY = Range("at least 0 and below 1", lambda value: 0 <= value < 1)
_COUNT = Range("a whole number of at least 1", lambda value: value >= 1)
_FROM_ZERO = Range("a whole number of at least 0", lambda value: value >= 0)
_SEED = Range("a whole number from 0 to 2^32 - 1", lambda value: 0 <= value < 2**32)
_INTERVAL = Range("a whole number of steps from 1, or a fraction of the run below 1",
                  lambda value: 0 < value < 1 or (value >= 1 and value == int(value)))

RANGES = {
    **dict.fromkeys(("learning_rate", "num_train_epochs"), _POSITIVE),
    **dict.fromkeys(("max_grad_norm", "weight_decay", "adam_epsilon", "neftune_noise_alpha", "eval_delay"),
                    _NOT_NEGATIVE),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), _DECAY),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
                     "torch_empty_cache_steps", "save_total_limit", "ddp_timeout", "dataloader_prefetch_factor"),
                    _COUNT),
    "dataloader_num_workers": _FROM_ZERO,
    **dict.fromkeys(("seed", "data_seed"), _SEED),
    **dict.fromkeys(("eval_steps", "save_steps", "logging_steps"), _INTERVAL),
    "warmup_steps": Range("0, a whole number of steps, or a fraction of the run below 1",
                          lambda value: value == 0 or _INTERVAL.holds(value)),
    "max_steps": Range("a whole number of at least 1, or -1 for no limit", lambda value: value == -1 or value >= 1),
}
"""Arguments that are numbers of a range; None is left to the argument's own type."""
