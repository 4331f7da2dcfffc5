"""Axolotl's YAML (read against axolotl 0.19): its keys, and what each of them is here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import CofituneError
from ..regions import DEFAULT_REGION
from . import rows
from .draft import Draft, Rule
from .layers import pattern, write_region
from .rules import (
    ATTENTION,
    FLOAT16,
    ONE_PROCESS_EACH,
    OUTSIDE,
    RESUME,
    TEMPLATE,
    TRAINER,
    done_anyway,
    flag,
    is_true,
    later,
    names_in,
    needless,
    optimizer,
    packing,
    path,
    refused,
    truth,
)
from .tool import LORA, NO_SFT, Tool, lora, write_default_region

NAME = "Axolotl"
_ALPACA = ("alpaca", "alpaca_chat.load_qa", "alpaca_w_system.load_open_orca", "alpaca:chat", "alpaca_chat.load_concise")
_CHAT = ("chat_template", "chat_template.default", "sharegpt", "chatml.intel", "chat_template.argilla")
_TRACKERS = {"wandb_project": "wandb", "use_wandb": "wandb", "use_mlflow": "mlflow", "mlflow_experiment_name": "mlflow",
             "use_comet": "comet_ml", "comet_project_name": "comet_ml", "use_tensorboard": "tensorboard",
             "use_trackio": "trackio", "trackio_project_name": "trackio"}


def _precision(draft: Draft, key: str, value: Any) -> None:
    if str(value).lower() == "auto":
        draft.change(key, "model.dtype", "auto", "the dtype of the checkpoint; it does not depend on the GPU")
    elif is_true(value):
        draft.take(key, "model.dtype", "bfloat16")
    else:
        draft.take(key, None)


def _tf32(draft: Draft, key: str, value: Any) -> None:
    if str(value).lower() == "auto":
        draft.needless(key, "torch's own default")
    else:
        draft.take(key, "training.tf32", is_true(value))


def _checkpointing(draft: Draft, key: str, value: Any) -> None:
    if str(value).lower().startswith("offload"):
        draft.change(key, "training.gradient_checkpointing", True, "activations are computed again, not moved away")
    else:
        draft.take(key, "training.gradient_checkpointing", is_true(value))


def _length(draft: Draft, key: str, value: Any) -> None:
    if draft.source.get("excess_length_strategy") == "truncate":
        draft.take(key, "data.max_length", value)
    else:
        draft.change(key, "data.max_length", value, "a longer row is cut at the end, where Axolotl drops it")


def _warmup_ratio(draft: Draft, key: str, value: Any) -> None:
    if draft.source.get("warmup_steps") is None:
        draft.take(key, "training.warmup_steps", value)
    else:
        draft.needless(key, "warmup_steps goes before it")


def _each_epoch(kind: str) -> Rule:
    """So many times an epoch: once is `epoch`, more often a share of the run's steps, as Axolotl itself computes."""
    def rule(draft: Draft, key: str, value: Any) -> None:
        epochs = draft.source.get("num_epochs") or 1
        if not isinstance(value, (int, float)) or not isinstance(epochs, (int, float)) or value < 0 or epochs <= 0:
            draft.refuse(key, f"set training.{kind}_steps")
        elif value == 0:
            draft.take(key, f"training.{kind}_strategy", "no")
        elif value == 1:
            draft.take(key, f"training.{kind}_strategy", "epoch")
        elif value * epochs <= 1:
            draft.take(key, f"training.{kind}_strategy", "no")
        else:
            draft.take(key, f"training.{kind}_strategy", "steps")
            draft.change(key, f"training.{kind}_steps", round(1 / (value * epochs), 6), "as a share of the run's steps")

    return rule


def _tracker(draft: Draft, key: str, value: Any) -> None:
    name = _TRACKERS[key]
    if key.startswith("use_") and not is_true(value):
        return draft.take(key, None)
    known = names_in(draft.settings.get("training.report_to", []))
    names = list(dict.fromkeys([*known, name]))
    remark = "" if key.startswith("use_") else "; its project is named by the tracker's environment variable"
    return draft.change(key, "training.report_to", names[0] if len(names) == 1 else names, f"the tracker{remark}")


def _least_rate(draft: Draft, key: str, value: Any) -> None:
    draft.change(key, "training.lr_scheduler_type", "cosine_with_min_lr", "the cosine that ends above 0")
    draft.take(key, "training.lr_scheduler_kwargs", {"min_lr_rate": value})


def _plugins(draft: Draft, key: str, value: Any) -> None:
    known = ("liger", "cut_cross_entropy", "spectrum")  # the last is settled by `_finish`
    if others := [name for name in names_in(value) if not any(word in name.lower() for word in known)]:
        draft.refuse(key, f"{', '.join(others)} has no counterpart here")
    else:
        draft.needless(key, "no logits are kept whole here, and Liger's kernel is taken where it is installed")


def _exactly(wanted: float) -> Rule:
    return lambda draft, key, value: (draft.take(key, None) if value == wanted
                                      else draft.refuse(key, f"it is {wanted} here"))


def _special_tokens(draft: Draft, key: str, value: Any) -> None:
    if isinstance(value, Mapping) and set(value) == {"pad_token"}:
        draft.needless(key, "padding is never learnt")
    else:
        draft.refuse(key, "the tokens are those of the tokenizer; change them there, and save model and tokenizer to a "
                          "folder")


TABLE: dict[str, str | Rule] = {
    **{key: TRAINER[key] for key in (
        "learning_rate", "max_steps", "gradient_accumulation_steps", "lr_scheduler_kwargs", "warmup_steps",
        "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "neftune_noise_alpha", "seed",
        "gradient_checkpointing_kwargs", "logging_steps", "save_strategy", "save_steps", "save_total_limit",
        "save_only_model", "eval_strategy", "evaluation_strategy", "eval_steps", "load_best_model_at_end",
        "metric_for_best_model", "greater_is_better", "early_stopping_patience", "output_dir",
        "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "dataloader_drop_last",
        "remove_unused_columns", "group_by_length", "torch_compile", "auto_find_batch_size", "ddp_timeout",
        "ddp_find_unused_parameters", "deepspeed", "fsdp", "fsdp_config", "hub_model_id", "trust_remote_code",
    )},
    # the model
    "base_model": path,
    "bf16": _precision,
    "bfloat16": _precision,
    "fp16": FLOAT16,
    "float32": flag("model.dtype", "float32"),
    "tf32": _tf32,
    "attn_implementation": ATTENTION,
    "flash_attention": flag("model.attn_implementation", "flash_attention_2"),
    "sdp_attention": flag("model.attn_implementation", "sdpa"),
    "eager_attention": flag("model.attn_implementation", "eager"),
    "xformers_attention": refused("left out, so that transformers chooses"),
    "flex_attention": refused("left out, so that transformers chooses"),
    "load_in_4bit": flag("model.quantize", "nf4", OUTSIDE),
    "load_in_8bit": flag("model.quantize", "int8", OUTSIDE),
    "gptq": refused("name the model that is not quantised, and set model.quantize"),
    "model_type": needless("the checkpoint says it"),
    **dict.fromkeys(("tokenizer_type", "processor_type", "tokenizer_use_fast", "tokenizer_legacy",
                     "is_llama_derived_model", "is_mistral_derived_model", "is_qwen_derived_model"),
                    needless("the checkpoint says it")),
    "tokenizer_use_mistral_common": refused("the tokenizer is the model's own, as transformers reads it"),
    "revision_of_model": refused("download that revision, and name the folder"),
    "model_config": refused("write it into the configuration of the model"),
    "quantize_moe_experts": needless("model.quantize covers experts outside the region"),
    "qat": refused("the region is trained in model.dtype; quantise the merged model"),
    "use_kernels": needless("the loss and the optimizer have kernels of their own"),
    "experts_implementation": needless("transformers chooses"),
    "device_map": refused("set model.device, or start under torchrun"),
    "tokenizer_config": refused("the tokenizer is the model's own"),
    "special_tokens": _special_tokens,
    "tokens": refused("add tokens to tokenizer and model first, and save both to a folder"),
    "resize_token_embeddings_to_32x": refused("the embeddings stay as they are"),
    # the data
    "datasets": later,
    "test_datasets": later,
    "val_set_size": later,
    "sequence_len": _length,
    "excess_length_strategy": needless("see sequence_len"),
    "chat_template": lambda draft, key, value: (draft.take(key, None) if value == "tokenizer_default"
                                                else draft.change(key, None, None, TEMPLATE)),
    "chat_template_jinja": refused("write the template into the tokenizer, and save it beside the model"),
    "default_system_message": refused("put the system prompt into the rows, as their field system"),
    "train_on_inputs": done_anyway(False, "only responses are learnt here"),
    "sample_packing": packing,
    "eval_sample_packing": packing,
    "pad_to_sequence_len": needless("rows are padded to the longest of their batch"),
    "dataset_prepared_path": needless("rows are tokenised at the start"),
    "dataset_processes": needless("rows are tokenised at the start"),
    "dataset_num_proc": needless("rows are tokenised at the start"),
    "skip_prepare_dataset": needless(),
    "dataset_exact_deduplication": refused("cofitune data shows rows that stand twice; take them out"),
    "min_sample_len": refused("take short rows out of the data"),
    "streaming": refused("all rows are read at the start, so that they can be checked"),
    "curriculum_sampling": refused("rows are drawn in random order"),
    "shuffle_merged_datasets": done_anyway(True, "rows are drawn in random order"),
    "eot_tokens": needless("which token ends a turn is read from the chat template"),
    # what is trained
    "unfrozen_parameters": later,
    "freeze_mm_modules": done_anyway(True, "only the text model's layers can be trained, unless region is full"),
    "adapter": later,
    "plugins": _plugins,
    "spectrum_top_fraction": refused("cofitune search --search.prior spectrum orders regions by Spectrum's measure"),
    "spectrum_model_name": needless(),
    "lisa_n_layers": refused("the region is fixed for a run; cofitune search finds one"),
    "lisa_layers_attribute": needless(),
    "lisa_step_interval": needless(),
    "lora_model_dir": refused("name the adapter's folder as model.path; it is merged into its base"),
    "merge_lora": needless("cofitune merge"),
    # the course of the training
    "micro_batch_size": "training.per_device_train_batch_size",
    "eval_batch_size": "training.per_device_eval_batch_size",
    "batch_size": refused("set training.per_device_train_batch_size and training.gradient_accumulation_steps"),
    "num_epochs": "training.num_train_epochs",
    "optimizer": optimizer,
    "lr_scheduler": "training.lr_scheduler_type",
    "warmup_ratio": _warmup_ratio,
    "cosine_min_lr_ratio": _least_rate,
    "gradient_checkpointing": _checkpointing,
    "activation_offloading": refused("only what is at or above the region keeps activations; "
                                     "training.gradient_checkpointing saves more"),
    "evals_per_epoch": _each_epoch("eval"),
    "saves_per_epoch": _each_epoch("save"),
    "wandb_name": "training.run_name",
    **dict.fromkeys(_TRACKERS, _tracker),
    "loss_watchdog_threshold": refused("watch the loss by training.report_to"),
    "loss_watchdog_patience": needless(),
    "resume_from_checkpoint": refused(RESUME),
    "auto_resume_from_checkpoints": needless("the same command goes on from its last checkpoint"),
    "use_eaft": flag("loss", "eaft"),
    "eaft_alpha": _exactly(1.0),
    "eaft_k": _exactly(20),
    "chunked_cross_entropy": needless("no logits are kept whole"),
    "cut_cross_entropy": needless("no logits are kept whole"),
    "flash_attn_cross_entropy": needless("no logits are kept whole"),
    "embedding_lr": refused("the embeddings are frozen, unless region is full; one rate for all"),
    "embedding_lr_scale": refused("the embeddings are frozen, unless region is full; one rate for all"),
    "lr_groups": refused("one rate for all"),
    # many GPUs
    "fsdp_version": needless("see fsdp"),
    **dict.fromkeys(("dp_shard_size", "tensor_parallel_size", "context_parallel_size",
                     "sequence_parallel_degree"), refused(ONE_PROCESS_EACH)),
    "strict": needless("unknown keys are refused"),
    "is_preprocess": needless(),
    "debug": needless(),
    "save_safetensors": done_anyway(True, "all files are safetensors"),
    "low_cpu_mem_usage": needless(),
    "save_first_step": needless(),
    "float16": FLOAT16,
    "tiled_mlp": refused("training.gradient_checkpointing and a smaller batch save memory"),
    "use_liger_kernel": TRAINER["use_liger_kernel"],
    "logging_first_step": truth("training.logging_first_step"),
}
PREFIXES: dict[str, Rule] = {
    "lora_": LORA, "peft": LORA, "loraplus_": LORA, "relora": LORA, "qlora_": LORA,
    "liger_": needless("Liger's kernel of the loss is taken where it is installed"),
    "wandb_": needless("set the tracker's environment variables"),
    "mlflow_": needless("set the tracker's environment variables"),
    "comet_": needless("set the tracker's environment variables"),
    "swanlab_": needless("set the tracker's environment variables"),
}
DEFAULTS = {
    "training.per_device_train_batch_size": ("micro_batch_size", 1, ""),
    "training.adam_beta2": ("adam_beta2", 0.999, ""),
    "training.warmup_steps": ("warmup_ratio", 0.03, "Axolotl takes at most 100 steps"),
}


def _finish(draft: Draft) -> None:
    given = draft.source
    for key in ("rl", "reward_model", "process_reward_model", "pretraining_dataset", "ebft", "diffusion"):
        if given.get(key) and not str(given[key]).lower() == "false":
            raise CofituneError(f"{draft.file.name} {NO_SFT.format(what=f'{key}: {str(given[key])[:40]}')}")
    for key, ours in (("datasets", "data.train"), ("test_datasets", "data.valid")):
        if given.get(key):
            rows.write_data(draft, key, ours, [_source(one, draft) for one in _as_list(given[key])])
    if given.get("val_set_size") is not None:
        rows.cut_off(draft, "val_set_size", given["val_set_size"])
    if given.get("adapter"):
        lora(draft, "adapter")
    elif given.get("unfrozen_parameters"):
        patterns = names_in(given["unfrozen_parameters"]) if isinstance(given["unfrozen_parameters"], str) else \
            [str(one) for one in _as_list(given["unfrozen_parameters"])]
        if sliced := [one for one in patterns if re.search(r"\[\d*(?::\d*)?\]$", one)]:
            draft.refuse("unfrozen_parameters", f"{', '.join(sliced)} train some rows of a weight, which no region "
                                                "can; those rows are left out")
        whole = [one for one in patterns if one not in sliced]
        write_region(draft, "unfrozen_parameters", lambda sizes: _unfrozen(whole, sizes))
    elif any("spectrum" in name.lower() for name in names_in(given.get("plugins") or [])):
        draft.change("plugins", "region", DEFAULT_REGION, "Spectrum's choice of weights is not read; cofitune search "
                                                          "--search.prior spectrum orders regions by its measure")
    else:
        write_default_region(draft)


def _unfrozen(patterns: list[str], sizes: Mapping[str, int]) -> Iterable[str]:
    """Names that a pattern matches from their beginning; a dot is a dot, except before a plus."""
    known = [pattern(re.sub(r"\.(?!\+)", r"\\.", one)) for one in patterns]
    return [name for name in sizes if any(one.match(name) for one in known)]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _source(entry: Any, draft: Draft) -> rows.Source:
    if not isinstance(entry, Mapping) or not entry.get("path"):
        return rows.Source(str(entry)[:60], problem="it has no path")
    name, files = str(entry["path"]), entry.get("data_files")
    files = [str(one) for one in _as_list(files)] if files else []
    is_local = name in ("json", "csv", "parquet", "text") or name.startswith((".", "/", "~")) or bool(Path(name).suffix)
    if len(files) == 1 and is_local:
        file = files[0] if not Path(name).is_dir() else str(Path(name) / files[0])
        source = rows.Source(file)
    elif files:
        return rows.Source(name, problem="put its data_files into one folder, and name that")
    elif is_local or (draft.file.parent / name).exists():
        source = rows.Source(name)
    else:
        source = rows.Source(rows.hub(name, str(entry.get("split") or "train"), entry.get("name")), is_hub=True)
    return source._replace(problem=_problem(entry))


def _problem(entry: Mapping[str, Any]) -> str:
    """Say why the rows of a data set cannot be read as they are, or ""."""
    if entry.get("roles_to_train") not in (None, [], ["assistant"], ["gpt"], ["assistant", "gpt"]):
        return "turns of the assistant are learnt, and no others"
    if any(entry.get(key) for key in ("shards", "preprocess_shards")):
        return "only a part of it is taken; take data.limit, or a slice such as train[:10%]"
    kind = entry.get("type")
    if isinstance(kind, Mapping):
        if kind.get("format") or kind.get("no_input_format"):
            return "its prompts have a format of their own; write them out into the rows, as prompt and completion"
        return rows.problem_with_fields(str(kind.get("field_instruction") or "instruction"),
                                        str(kind.get("field_output") or "output"), kind.get("field_input"))
    if kind in _ALPACA or kind is None:
        return ""
    if str(kind) in _CHAT or str(kind).startswith("chat_template"):
        names = rows.columns_of(entry.get("message_property_mappings"))
        by_default = ("from", "value") if kind == "sharegpt" else ("role", "content")
        role = names.get("role") or entry.get("message_field_role") or by_default[0]
        content = names.get("content") or entry.get("message_field_content") or by_default[1]
        field = entry.get("field_messages") or ("conversations" if kind == "sharegpt" else "messages")
        return rows.problem_with_turns(str(field), str(role), str(content))
    if kind == "completion":
        return "text alone is not learnt here; rows need a prompt and a response"
    return (f"rows of the type {str(kind)[:40]} are formed by Axolotl; write them as messages, or as prompt and "
            "completion")


AXOLOTL = Tool(NAME, TABLE, PREFIXES, DEFAULTS, _finish,
               ignored=("rl", "reward_model", "process_reward_model", "pretraining_dataset", "ebft", "diffusion"))
