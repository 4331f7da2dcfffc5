"""ms-swift's arguments (read against ms-swift 4.6), of a command line, YAML or JSON, and what each of them is here."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

from ..errors import CofituneError
from . import rows
from .draft import Draft, Rule
from .layers import pattern, write_region
from .rules import (
    ATTENTION,
    FLOAT16,
    FROZEN_ANYWAY,
    ONE_PROCESS_EACH,
    TEMPLATE,
    TRAINER,
    bits,
    changed,
    done_anyway,
    flag,
    is_true,
    later,
    needless,
    packing,
    path,
    refused,
    thinking,
    words,
)
from .tool import LORA, NO_SFT, Tool, lora

NAME = "ms-swift"
_FREEZING = ("freeze_parameters", "freeze_parameters_regex", "freeze_parameters_ratio", "trainable_parameters",
             "trainable_parameters_regex")


def _dtype(draft: Draft, key: str, value: Any) -> None:
    name = str(value)
    if name in ("bfloat16", "float32"):
        draft.take(key, "model.dtype", name)
    else:
        draft.change(key, "model.dtype", "bfloat16", "float16 needs scaled gradients")


def _length(draft: Draft, key: str, value: Any) -> None:
    if draft.source.get("truncation_strategy") == "right":
        draft.take(key, "data.max_length", value)
    else:
        draft.change(key, "data.max_length", value, "a longer row is cut at its end, where ms-swift drops it")


def _loss_scale(draft: Draft, key: str, value: Any) -> None:
    if str(value) == "default":
        draft.take(key, None)
    else:
        draft.refuse(key, "every turn of the assistant is learnt alike; mark turns that are not with loss: false")


def _freezing(draft: Draft, key: str, value: Any) -> None:
    """Note a key of `_finish`, which makes one region of all of them."""
    draft.take(key, None)


_GENERATION = needless("nothing is generated during training")
TABLE: dict[str, str | Rule] = {
    **TRAINER,
    # the model
    "model": path,
    "model_type": needless("the checkpoint says it"),
    "model_revision": refused("download that revision, and name the folder"),
    "use_hf": needless("models are those of the Hugging Face hub, or folders"),
    "torch_dtype": _dtype,
    "bf16": flag("model.dtype", "bfloat16"),
    "fp16": FLOAT16,
    "attn_impl": ATTENTION,
    "quant_bits": bits,
    "quant_method": words(None, {"bnb": None}, "set model.quantize to nf4 or int8"),
    "bnb_4bit_quant_type": words(None, {"nf4": None}, "4 bits are nf4 here"),
    "adapters": refused("name the adapter's folder as model.path; it is merged into its base"),
    "device_map": refused("set model.device, or start under torchrun"),
    "rope_scaling": refused("write it into the configuration of the model"),
    "new_special_tokens": refused("add tokens to tokenizer and model first, and save both to a folder"),
    "check_model": needless(),
    "local_repo_path": needless(),
    "ENV": needless("set environment variables in the shell"),
    "router_aux_loss_coef": refused("the routers of experts are frozen, and have no loss of their own"),
    # the data
    "dataset": later,
    "val_dataset": later,
    "split_dataset_ratio": later,
    "columns": refused("rename the columns in the data; docs/how-to/bring-your-data.md has the names that are read"),
    "max_length": _length,
    "truncation_strategy": needless("see max_length"),
    "template": changed(None, lambda value: None, TEMPLATE),
    "template_backend": needless("see template"),
    "use_chat_template": done_anyway(True, "conversations are rendered by the model's chat template"),
    "system": refused("put the system prompt into the rows, as their field system"),
    "loss_scale": _loss_scale,
    "enable_thinking": thinking,
    "agent_template": needless("tools are handed to the model's own chat template"),
    "packing": packing,
    "padding_free": packing,
    "packing_length": needless("see packing"),
    "streaming": refused("all rows are read at the start, so that they can be checked"),
    "interleave_prob": refused("put the rows of all into one file, as often as they should come"),
    "strict": lambda draft, key, value: draft.take(key, "data.on_bad_row", "stop" if is_true(value) else "skip"),
    "dataset_shuffle": done_anyway(True, "rows are drawn in random order"),
    "train_dataloader_shuffle": done_anyway(True, "rows are drawn in random order"),
    "model_author": refused("put the names into the rows"),
    "model_name": refused("put the names into the rows"),
    "custom_dataset_info": refused("name the data files themselves"),
    "custom_register_path": refused("no code of a user is run by a configuration"),
    "external_plugins": refused("no code of a user is run by a configuration"),
    **dict.fromkeys(("dataset_num_proc", "load_from_cache_file", "lazy_tokenize", "download_mode", "cached_dataset",
                     "shuffle_buffer_size", "val_dataset_shuffle"), needless("rows are read at the start")),
    # what is trained
    "tuner_type": later,
    "train_type": later,
    **dict.fromkeys(_FREEZING, _freezing),
    "freeze_llm": done_anyway(False, FROZEN_ANYWAY),
    "freeze_vit": done_anyway(True, "only the text model's layers can be trained, unless region is full"),
    "freeze_aligner": done_anyway(True, "only the text model's layers can be trained, unless region is full"),
    "tuner_backend": needless(),
    "lisa_activated_layers": refused("the region is fixed for a run; cofitune search finds one"),
    # the loss and the optimizer
    "enable_dft_loss": flag("loss", "dft"),
    "loss_type": refused("set loss to ce, dft or eaft"),
    "optimizer": refused("MaskedAdamW takes its place"),
    "use_galore": refused("MaskedAdamW takes its place, and a learning rate for another optimizer may not suit it"),
    # the course of the training
    "max_epochs": "training.num_train_epochs",
    "early_stop_interval": "training.early_stopping_patience",
    "add_version": needless("a run of other settings in the same folder is refused"),
    "create_checkpoint_symlink": needless(),
    "logging_dir": needless("set TENSORBOARD_LOGGING_DIR"),
    "save_safetensors": done_anyway(True, "all files are safetensors"),
    "acc_strategy": needless("the loss is measured"),
    "use_logits_to_keep": needless("no logits are kept whole"),
    "load_args": needless(),
    "load_data_args": needless(),
    "ignore_args_error": needless(),
    "resume_only_model": needless(),
    "predict_with_generate": needless("cofitune evaluate --generate"),
    "sequence_parallel_size": refused(ONE_PROCESS_EACH),
}
PREFIXES: dict[str, Rule] = {
    "lora_": LORA, "target_": LORA, "modules_to_save": LORA, "use_rslora": LORA, "use_dora": LORA, "lorap_": LORA,
    "init_weights": LORA, "adalora_": LORA, "vera_": LORA, "boft_": LORA, "fourier_": LORA, "reft_": LORA,
    "llamapro_": LORA, "use_swift_lora": LORA, "galore_": needless("see use_galore"),
    "swanlab_": needless("set the tracker's environment variables"),
    "vllm_": _GENERATION, "max_new_tokens": _GENERATION, "temperature": _GENERATION, "top_": _GENERATION,
    "stream": _GENERATION, "repetition_penalty": _GENERATION, "num_beams": _GENERATION,
    "eval_": needless("cofitune evaluate"), "vit_": refused("rows hold text"), "aligner_": refused("rows hold text"),
    "max_pixels": refused("rows hold text"),
}
DEFAULTS = {
    "training.num_train_epochs": ("num_train_epochs", 3, ""),
    "training.per_device_train_batch_size": ("per_device_train_batch_size", 1, ""),
    "training.weight_decay": ("weight_decay", 0.1, ""),
    "training.warmup_steps": ("warmup_ratio", 0, ""),
    "training.learning_rate": ("learning_rate", 1e-5, "of full training"),
    "training.gradient_checkpointing": ("gradient_checkpointing", True, "less memory, more time"),
    "data.max_length": ("max_length", 2048, "ms-swift takes the model's limit; set it to your longest row, which "
                                            "cofitune data shows"),
}


def _finish(draft: Draft) -> None:
    given = draft.source
    if (task := str(given.get("task_type") or "causal_lm")) != "causal_lm":
        raise CofituneError(f"{draft.file.name} {NO_SFT.format(what=f'task_type: {task[:40]}')}")
    if given.get("rlhf_type") or given.get("reward_funcs"):
        what = f"rlhf_type: {str(given.get('rlhf_type') or 'grpo')[:40]}"
        raise CofituneError(f"{draft.file.name} {NO_SFT.format(what=what)}")
    for key, ours in (("dataset", "data.train"), ("val_dataset", "data.valid")):
        if given.get(key):
            value = given[key]
            sources = [_source(str(one)) for one in (value if isinstance(value, list) else str(value).split())]
            rows.write_data(draft, key, ours, sources)
    if given.get("split_dataset_ratio") is not None:
        rows.cut_off(draft, "split_dataset_ratio", given["split_dataset_ratio"])
    kind_key = "train_type" if "train_type" in given else "tuner_type"
    kind = str(given.get(kind_key) or "lora")
    if kind != "full":
        lora(draft, kind_key)
    elif any(given.get(key) for key in _FREEZING):
        write_region(draft, kind_key, lambda sizes: _trained(given, sizes))
    else:
        draft.take(kind_key, "region", "full")
    _accumulation(draft)


def _accumulation(draft: Draft) -> None:
    """Write ms-swift's own default: rows of 16 in one step, on as many processes as the command starts."""
    batch, processes = draft.source.get("per_device_train_batch_size") or 1, draft.processes or 1
    if isinstance(batch, int) and isinstance(processes, int) and batch > 0 and processes > 0:
        draft.default("no gradient_accumulation_steps", "training.gradient_accumulation_steps",
                      max(1, math.ceil(16 / batch / processes)),
                      f"16 rows a step on {'one GPU' if processes == 1 else f'{processes} GPUs'}")


def _trained(given: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterable[str]:
    """Names that stay trained: what is frozen by share, beginning or pattern is taken away, then what is to be trained
    is put back.
    """
    names, ratio = list(sizes), given.get("freeze_parameters_ratio") or 0
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio <= 1:
        raise CofituneError("freeze_parameters_ratio is no number from 0 to 1")
    frozen = set(names[: bisect_right(list(accumulate(sizes.values())), int(sum(sizes.values()) * ratio))] if ratio
                 else [])
    frozen |= _named(given, "freeze_parameters", names)
    return set(names) - (frozen - _named(given, "trainable_parameters", names))


def _named(given: Mapping[str, Any], key: str, names: list[str]) -> set[str]:
    value = given.get(key) or []
    beginnings = tuple(str(one) for one in value) if isinstance(value, list) else tuple(str(value).split())
    found = {name for name in names if beginnings and name.startswith(beginnings)}
    if expression := given.get(f"{key}_regex"):
        matches = pattern(str(expression))
        found |= {name for name in names if matches.search(name)}
    return found


def _source(text: str) -> rows.Source:
    """A data set in ms-swift's words: [hf::|ms::]NAME[:SUBSET][#COUNT]."""
    name, _, count = text.partition("#")
    limit = int(count) if count.isdecimal() else None
    home, colons, rest = name.partition("::")
    if colons:
        name = rest
    if name.startswith((".", "/", "~")) or name.endswith(tuple(f".{kind}" for kind in ("jsonl", "json", "csv", "txt"))):
        return rows.Source(name, limit=limit)
    name, _, subset = name.partition(":")
    remark = "" if home == "hf" and colons else "a data set of the Hugging Face hub; ms-swift's names are ModelScope's"
    return rows.Source(rows.hub(name, config=subset or None), is_hub=True, limit=limit, remark=remark)


MS_SWIFT = Tool(NAME, TABLE, PREFIXES, DEFAULTS, _finish, ignored=("rlhf_type", "reward_funcs", "task_type"))
