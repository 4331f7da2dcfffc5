"""Rules that the tables of the tools are made of: each makes a function that settles one key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .draft import Draft, Rule

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "none")


def is_true(value: Any) -> bool:
    """Read true and false as the tools' YAML readers and command lines do, `yes` and `on` among them."""
    return str(value).lower() in _TRUE


def is_false(value: Any) -> bool:
    return str(value).lower() in _FALSE


def names_in(value: Any) -> list[str]:
    """List of names, which may stand in one text with commas between them."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    return [str(part).strip() for part in parts if str(part).strip()]


def truth(ours: str) -> Rule:
    """Take true or false, however it is spelled."""
    return lambda draft, key, value: draft.take(key, ours, is_true(value))


def number(ours: str) -> Rule:
    """Take a number, which may be written as text."""
    def rule(draft: Draft, key: str, value: Any) -> None:
        try:
            draft.take(key, ours, float(value) if isinstance(value, str) else value)
        except ValueError:
            draft.refuse(key, f"{value!r} is no number; set {ours}")

    return rule


def needless(why: str = "") -> Rule:
    return lambda draft, key, value: draft.needless(key, why)


def refused(instead: str) -> Rule:
    """Refuse a key, unless it is off."""
    return lambda draft, key, value: draft.take(key, None) if is_false(value) else draft.refuse(key, instead)


def done_anyway(value_here: bool, otherwise: str) -> Rule:
    """Take true (or false) as what is done here anyway, and refuse the opposite."""
    def rule(draft: Draft, key: str, value: Any) -> None:
        if is_true(value) == value_here:
            draft.take(key, None)
        else:
            draft.refuse(key, otherwise)

    return rule


def changed(ours: str | None, convert: Callable[[Any], Any], why: str) -> Rule:
    return lambda draft, key, value: draft.change(key, ours, convert(value), why)


def words(ours: str | None, table: Mapping[str, Any], otherwise: str) -> Rule:
    """Translate one of some words; any other is refused."""
    def rule(draft: Draft, key: str, value: Any) -> None:
        word = str(value).lower()
        if word in table:
            draft.take(key, ours if table[word] is not None else None, table[word])
        else:
            draft.refuse(key, otherwise)

    return rule


def flag(ours: str, value_here: Any, why: str = "") -> Rule:
    """Write a value of ours if the key is on."""
    def rule(draft: Draft, key: str, value: Any) -> None:
        if not is_true(value):
            draft.take(key, None)
        elif why:
            draft.change(key, ours, value_here, why)
        else:
            draft.take(key, ours, value_here)

    return rule


def later(draft: Draft, key: str, value: Any) -> None:
    """Leave a key to the tool's `finish`, which needs others first."""


def bits(draft: Draft, key: str, value: Any) -> None:
    """Quantise what is outside the region."""
    kind = {4: "nf4", 8: "int8"}.get(value)
    if kind:
        draft.change(key, "model.quantize", kind, OUTSIDE)
    else:
        draft.refuse(key, "set model.quantize to nf4 or int8")


def thinking(draft: Draft, key: str, value: Any) -> None:
    if is_true(value):
        draft.take(key, None)
    else:
        draft.change(key, "data.thinking", "empty", "responses follow an empty thought")


def warmup_ratio(draft: Draft, key: str, value: Any) -> None:
    if draft.source.get("warmup_steps"):
        draft.needless(key, "warmup_steps goes before it")
    else:
        draft.take(key, "training.warmup_steps", value)


def reports(draft: Draft, key: str, value: Any) -> None:
    """Take the names of trackers."""
    names = names_in(value)
    draft.take(key, "training.report_to", names[0] if len(names) == 1 else names)


def path(draft: Draft, key: str, value: Any) -> None:
    """Take the base model, or name the local copy in its place."""
    if draft.model is None:
        draft.take(key, "model.path", str(value))
    else:
        draft.change(key, "model.path", draft.model, "the copy that --model names")


ATTENTION = words("model.attn_implementation", {
    "flash_attention_2": "flash_attention_2", "fa2": "flash_attention_2", "flash_attn": "flash_attention_2",
    "flash_attention_3": "flash_attention_3", "fa3": "flash_attention_3", "flash_attention": "flash_attention_2",
    "sdpa": "sdpa", "eager": "eager", "auto": None, "disabled": "eager",
}, "left out, so that transformers chooses; set model.attn_implementation to sdpa, eager or flash_attention_2")

_SAME_OPTIMIZER = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw")
_OF_BYTES = ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "adamw_torch_8bit", "ao_adamw_8bit")


def optimizer(draft: Draft, key: str, value: Any) -> None:
    """Settle the optimizer: MaskedAdamW takes the step of AdamW, with moments of 8 bits where they were asked for."""
    name = str(value).lower()
    if name in _SAME_OPTIMIZER:
        draft.take(key, None)
    elif name in _OF_BYTES:
        draft.change(key, "storage", "int8", "moments of 8 bits, in MaskedAdamW's own format; the weights are rounded "
                                             "stochastically")
    elif name in ("paged_adamw", "paged_adamw_32bit"):
        draft.change(key, "memory.optimizer_states", "host", "the states stay in the host's memory")
    else:
        draft.refuse(key, "MaskedAdamW takes its place, and a learning rate for another optimizer may not suit it; "
                          "try some rates")


OUTSIDE = "everything outside the region"
FLOAT16 = flag("model.dtype", "bfloat16", "float16 needs scaled gradients")
ONE_PROCESS_EACH = ("start under torchrun, which shares the model out by FSDP2: torchrun --nproc-per-node N -m "
                    "cofitune_fast.cli train --config run.yaml; a region often fits one GPU (cofitune plan)")
TRUST = ("code that a model brings along is never run here; models of kinds that transformers knows load without it")
PACKING = ("rows are not packed: those of like length come together, and rows that begin alike share tokens by "
           "themselves. A packed batch held more rows, so take a larger batch for the same rows a step")
RESUME = "a checkpoint of another tool cannot be gone on from; merge it and name the folder as the model"
TEMPLATE = "the model's own chat template, of its tokenizer, is used; look at some rows by cofitune data"
FROZEN_ANYWAY = "what is outside the region is frozen"


def packing(draft: Draft, key: str, value: Any) -> None:
    if is_true(value):
        draft.change(key, None, None, PACKING)
    else:
        draft.take(key, None)


TRAINER: dict[str, str | Rule] = {
    "learning_rate": number("training.learning_rate"),
    "num_train_epochs": "training.num_train_epochs",
    "max_steps": "training.max_steps",
    "per_device_train_batch_size": "training.per_device_train_batch_size",
    "per_device_eval_batch_size": "training.per_device_eval_batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "lr_scheduler_type": "training.lr_scheduler_type",
    "lr_scheduler_kwargs": "training.lr_scheduler_kwargs",
    "warmup_steps": "training.warmup_steps",
    "warmup_ratio": warmup_ratio,
    "weight_decay": "training.weight_decay",
    "adam_beta1": "training.adam_beta1",
    "adam_beta2": "training.adam_beta2",
    "adam_epsilon": "training.adam_epsilon",
    "max_grad_norm": "training.max_grad_norm",
    "neftune_noise_alpha": "training.neftune_noise_alpha",
    "seed": "training.seed",
    "data_seed": "training.data_seed",
    "gradient_checkpointing": truth("training.gradient_checkpointing"),
    "gradient_checkpointing_kwargs": "training.gradient_checkpointing_kwargs",
    "logging_steps": "training.logging_steps",
    "logging_strategy": "training.logging_strategy",
    "logging_first_step": truth("training.logging_first_step"),
    "save_strategy": "training.save_strategy",
    "save_steps": "training.save_steps",
    "save_total_limit": "training.save_total_limit",
    "save_only_model": truth("training.save_only_model"),
    "eval_strategy": "training.eval_strategy",
    "evaluation_strategy": "training.eval_strategy",
    "eval_steps": "training.eval_steps",
    "eval_on_start": truth("training.eval_on_start"),
    "load_best_model_at_end": truth("training.load_best_model_at_end"),
    "metric_for_best_model": "training.metric_for_best_model",
    "greater_is_better": truth("training.greater_is_better"),
    "early_stopping_patience": "training.early_stopping_patience",
    "run_name": "training.run_name",
    "report_to": reports,
    "output_dir": "output",
    "optim": optimizer,
    "optim_args": refused("MaskedAdamW has no further arguments"),
    "label_smoothing_factor": refused("the loss is the one that `loss` names; none smooths labels"),
    "tf32": truth("training.tf32"),
    "dataloader_num_workers": "training.dataloader_num_workers",
    "dataloader_pin_memory": truth("training.dataloader_pin_memory"),
    "dataloader_prefetch_factor": "training.dataloader_prefetch_factor",
    "dataloader_drop_last": truth("training.dataloader_drop_last"),
    "remove_unused_columns": needless("fields that are not read are left out"),
    "group_by_length": needless("rows of like length come together anyway"),
    "torch_compile": refused("frozen layers are skipped, and a compiled model would be compiled anew at every step"),
    "auto_find_batch_size": refused("cofitune plan --fit finds the batch size that fits"),
    "resume_from_checkpoint": refused(RESUME),
    "do_train": needless("the command that is run decides"),
    "do_eval": needless("training.eval_strategy decides"),
    "ddp_timeout": "training.ddp_timeout",
    "ddp_backend": "training.ddp_backend",
    "ddp_find_unused_parameters": needless("processes share the model out by FSDP2"),
    "deepspeed": refused(ONE_PROCESS_EACH),
    "fsdp": refused(ONE_PROCESS_EACH),
    "fsdp_config": needless("see fsdp"),
    "use_liger_kernel": needless("the loss takes Liger's kernel by itself, on a GPU where the package is installed"),
    "push_to_hub": refused("train first, then cofitune push the delta or the merged folder"),
    "hub_model_id": refused("train first, then cofitune push the delta or the merged folder"),
    "trust_remote_code": needless(TRUST),
    "lisa_step_interval": needless("see the number of its layers"),
}
"""Arguments of transformers.TrainingArguments, which all the tools hand on."""
