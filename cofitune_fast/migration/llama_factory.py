"""LLaMA-Factory's YAML (read against llamafactory 0.9.5): its keys, and what each of them is here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import CofituneError
from ..json_text import read_json
from . import rows
from .draft import Draft, Rule
from .layers import write_region
from .rules import (
    ATTENTION,
    FLOAT16,
    FROZEN_ANYWAY,
    TEMPLATE,
    TRAINER,
    bits,
    changed,
    done_anyway,
    flag,
    is_true,
    later,
    names_in,
    needless,
    packing,
    path,
    refused,
    thinking,
    truth,
    words,
)
from .tool import LORA, NO_SFT, Tool, lora, write_default_region

NAME = "LLaMA-Factory"


def _pure_bf16(draft: Draft, key: str, value: Any) -> None:
    if is_true(value):
        draft.take(key, "model.dtype", "bfloat16")
        draft.take(key, "storage", "bf16")
    else:
        draft.take(key, None)


def _no_checkpointing(draft: Draft, key: str, value: Any) -> None:
    draft.take(key, "training.gradient_checkpointing", not is_true(value))


_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}  # where an entry names none
_ASFT = "near to it is loss: dft with the anchor, whose KL to the base is taken on texts of the base"
TABLE: dict[str, str | Rule] = {
    **TRAINER,
    # the model
    "model_name_or_path": path,
    "adapter_name_or_path": refused("name the adapter's folder as model.path; it is merged into its base"),
    "bf16": flag("model.dtype", "bfloat16"),
    "pure_bf16": _pure_bf16,
    "fp16": FLOAT16,
    "flash_attn": ATTENTION,
    "quantization_bit": bits,
    "quantization_method": words(None, {"bnb": None, "bitsandbytes": None}, "set model.quantize to nf4 or int8"),
    "quantization_type": words(None, {"nf4": None}, "4 bits are nf4 here"),
    "double_quantization": needless(),
    "disable_gradient_checkpointing": _no_checkpointing,
    "use_reentrant_gc": needless("the backward ends at the region either way"),
    "enable_liger_kernel": TRAINER["use_liger_kernel"],
    "upcast_layernorm": needless("norms are frozen"),
    "use_unsloth": refused("the frozen layers are skipped by other means"),
    "use_unsloth_gc": refused("set training.gradient_checkpointing"),
    "rope_scaling": refused("write it into the configuration of the model"),
    "resize_vocab": refused("the embeddings stay as they are"),
    "add_tokens": refused("add tokens to tokenizer and model first, and save both to a folder"),
    "model_revision": refused("download that revision, and name the folder"),
    "cache_dir": needless("set HF_HOME"),
    "use_fast_tokenizer": needless(),
    "low_cpu_mem_usage": needless(),
    # the data
    "dataset": later,
    "eval_dataset": later,
    "dataset_dir": needless("see dataset"),
    "val_size": later,
    "max_samples": later,
    "cutoff_len": changed("data.max_length", lambda value: value, "a longer row is cut at its end, where LLaMA-Factory "
                                                                  "shortens prompt and response in proportion"),
    "template": changed(None, lambda value: None, TEMPLATE),
    "default_system": refused("put the system prompt into the rows, as their field system"),
    "enable_thinking": thinking,
    "train_on_prompt": done_anyway(False, "only responses are learnt here"),
    "mask_history": done_anyway(False, "every turn of the assistant is learnt here; mark earlier turns with weight: 0"),
    "packing": packing,
    "neat_packing": packing,
    "streaming": refused("all rows are read at the start, so that they can be checked"),
    "mix_strategy": words(None, {"concat": None}, "put the rows of all into one file, as often as they should come"),
    "interleave_probs": refused("put the rows of all into one file, as often as they should come"),
    "overwrite_cache": needless("rows are tokenised at the start"),
    "preprocessing_num_workers": needless("rows are tokenised at the start"),
    "preprocessing_batch_size": needless("rows are tokenised at the start"),
    "tokenized_path": needless("rows are tokenised at the start"),
    "ignore_pad_token_for_loss": done_anyway(True, "padding is never learnt"),
    "disable_shuffling": done_anyway(False, "rows are drawn in random order"),
    "media_dir": refused("rows hold text"),
    # what is trained
    "stage": later,
    "finetuning_type": later,
    "freeze_trainable_layers": later,
    "freeze_trainable_modules": later,
    "freeze_extra_modules": later,
    "freeze_vision_tower": done_anyway(True, "only the text model's layers can be trained, unless region is full"),
    "freeze_multi_modal_projector": done_anyway(True, "only the text model's layers can be trained, unless region is "
                                                      "full"),
    "freeze_language_model": done_anyway(False, FROZEN_ANYWAY),
    "use_llama_pro": refused("no layers are added; a region is chosen among those that are there"),
    # the loss and the optimizer
    "use_dft_loss": flag("loss", "dft"),
    "use_eaft_loss": flag("loss", "eaft"),
    "eaft_alpha": lambda draft, key, value: draft.take(key, None) if value == 1 else draft.refuse(key, "it is 1 here"),
    "use_asft_loss": refused(_ASFT),
    "asft_alpha": refused(_ASFT),
    **dict.fromkeys(("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon"),
                    refused("MaskedAdamW takes its place, and a learning rate for another optimizer may not suit it")),
    # the course of the training
    "early_stopping_steps": "training.early_stopping_patience",
    "overwrite_output_dir": needless("cofitune train --overwrite"),
    "plot_loss": needless("the losses stand in the delta's cofitune.json"),
    "predict_with_generate": needless("cofitune evaluate --generate"),
    "compute_accuracy": needless("cofitune evaluate"),
    "do_predict": needless("cofitune evaluate"),
    "include_num_input_tokens_seen": truth("training.include_num_input_tokens_seen"),
    "print_param_status": needless(),
    "use_v1_kernels": needless(),
}
_OTHER_OPTIMIZER = needless("see the optimizer")
PREFIXES: dict[str, Rule] = {
    "lora_": LORA, "loraplus_": LORA, "pissa_": LORA, "oft_": LORA, "use_dora": LORA, "use_rslora": LORA,
    "additional_target": LORA, "create_new_adapter": LORA,
    "galore_": _OTHER_OPTIMIZER, "apollo_": _OTHER_OPTIMIZER, "badam_": _OTHER_OPTIMIZER,
    "swanlab_": needless("set the tracker's environment variables"), "use_swanlab": refused("set training.report_to"),
    "image_": refused("rows hold text"), "video_": refused("rows hold text"), "audio_": refused("rows hold text"),
    "vllm_": needless(), "sglang_": needless(), "infer_": needless(), "export_": needless("cofitune merge"),
    "ray_": refused("cofitune search --executor ray runs searches on a cluster"),
}
DEFAULTS = {
    "data.max_length": ("cutoff_len", 2048, ""),
    "training.learning_rate": ("learning_rate", 5e-5, ""),
    "training.num_train_epochs": ("num_train_epochs", 3, ""),
    "training.lr_scheduler_type": ("lr_scheduler_type", "linear", ""),
    "training.warmup_steps": ("warmup_steps", 0, ""),
    "training.adam_beta2": ("adam_beta2", 0.999, ""),
    "training.gradient_checkpointing": ("disable_gradient_checkpointing", True, "less memory, more time"),
}


def _finish(draft: Draft) -> None:
    given = draft.source
    if (stage := str(given.get("stage") or "sft")) != "sft":
        raise CofituneError(f"{draft.file.name} {NO_SFT.format(what=f'stage: {stage[:40]}')}")
    if "stage" in given:
        draft.take("stage", None)
    for key, ours in (("dataset", "data.train"), ("eval_dataset", "data.valid")):
        if given.get(key):
            rows.write_data(draft, key, ours, [_source(name, draft) for name in names_in(given[key])])
    if given.get("max_samples"):
        if "data.train" in draft.settings:
            draft.take("max_samples", "data.limit", given["max_samples"])
        else:
            draft.refuse("max_samples", "data.limit is for one data set")
    if given.get("val_size") is not None:
        rows.cut_off(draft, "val_size", given["val_size"])
    kind = str(given.get("finetuning_type") or "lora")
    if kind in ("lora", "oft"):
        lora(draft, "finetuning_type")
    elif kind == "full":
        draft.take("finetuning_type", "region", "full")
    elif kind == "freeze":
        _freeze(draft)
    else:
        draft.refuse("finetuning_type", "set region")
        write_default_region(draft)


def _freeze(draft: Draft) -> None:
    given = draft.source
    layers = given.get("freeze_trainable_layers", 2)
    if not isinstance(layers, int) or isinstance(layers, bool) or layers == 0 or is_true(given.get("use_llama_pro")):
        draft.refuse("freeze_trainable_layers", "it must be the number of the last layers, or negative of the first, "
                                                "and without use_llama_pro; set region")
        return
    modules = names_in(given.get("freeze_trainable_modules") or "all")
    extra = names_in(given.get("freeze_extra_modules") or [])
    for key in ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules"):
        if given.get(key) is not None:
            draft.take(key, None)
    write_region(draft, "finetuning_type", partial(_trained, layers, modules, extra))


def _trained(layers: int, modules: list[str], extra: list[str], sizes: Mapping[str, int]) -> Iterable[str]:
    """Names that contain ".LAYER.MODULE" or an extra module, as LLaMA-Factory looks for them.

    Args:
        layers: n > 0 for the last n layers, n < 0 for the first |n|.

    Raises:
        CofituneError: the model has no such module.
    """
    numbers = [int(found[1]) for name in sizes if (found := re.search(r"\.(\d+)\.", name))]
    count = max(numbers, default=-1) + 1
    chosen = range(max(0, count - layers), count) if layers > 0 else range(min(-layers, count))
    inside = {name.split(".0.")[-1].split(".")[0] for name in sizes if ".0." in name}
    outside = {name.split(".")[-2] for name in sizes if not re.search(r"\.\d+\.", name) and "." in name}
    for wanted, there in ((set(modules) - {"all"}, inside), (set(extra), outside)):
        if wanted - there:
            raise CofituneError(f"the model has no module {', '.join(sorted(wanted - there))} there; it has "
                                f"{', '.join(sorted(there))}")
    parts = [f".{layer}.{'' if module == 'all' else module}" for layer in chosen for module in modules] + extra
    return [name for name in sizes if any(part in name for part in parts)]


def _source(name: str, draft: Draft) -> rows.Source:
    """A data set by its name in dataset_info.json, which lies in dataset_dir or beside the file."""
    if draft.source.get("dataset_dir") == "ONLINE":
        return rows.Source(rows.hub(name), is_hub=True)
    folder, entries = _known_sets(draft)
    entry = entries.get(name)
    if not isinstance(entry, Mapping):
        where = f"{folder / 'dataset_info.json'} has no entry of that name" if entries else \
            f"there is no {folder / 'dataset_info.json'}; put it there, or name a file in data.train"
        return rows.Source(name, problem=where)
    columns = rows.columns_of(entry.get("columns"))
    if entry.get("script_url"):
        return rows.Source(name, problem="it is made by a script, and no code of a data set is run here")
    if entry.get("hf_hub_url"):
        source = rows.Source(rows.hub(str(entry["hf_hub_url"]), str(entry.get("split") or "train"),
                                      entry.get("subset")), is_hub=True, limit=entry.get("num_samples"))
    elif entry.get("file_name"):
        source = rows.Source(str(folder / str(entry["file_name"])), limit=entry.get("num_samples"))
    else:
        return rows.Source(name, problem="it has neither hf_hub_url nor file_name; put its rows into a file")
    return source._replace(problem=_problem(entry, columns or _COLUMNS))


def _known_sets(draft: Draft) -> tuple[Path, Mapping[str, Any]]:
    named = Path(str(draft.source.get("dataset_dir") or "data"))
    for folder in (named, draft.file.parent / named, draft.file.parent):
        if (folder / "dataset_info.json").is_file():
            entries = read_json(folder / "dataset_info.json", "list of data sets")
            return folder, entries if isinstance(entries, Mapping) else {}
    return named, {}


def _problem(entry: Mapping[str, Any], columns: Mapping[str, Any]) -> str:
    """Say why the rows of a data set cannot be read as they are, or ""."""
    if is_true(entry.get("ranking")) or columns.get("chosen") or columns.get("kto_tag"):
        return "it holds preferences, and here one response is learnt"
    if media := [kind for kind in ("images", "videos", "audios") if columns.get(kind)]:
        return f"it has {', '.join(media)}, and rows hold text"
    if (system := columns.get("system")) and system not in ("system", "system_prompt", "system_message"):
        return f"a system prompt is read from the field system; rename the field {system}"
    if entry.get("formatting", "alpaca") == "alpaca":
        return rows.problem_with_fields(str(columns.get("prompt")), str(columns.get("response")), columns.get("query"),
                                        columns.get("history"))
    tags = rows.columns_of(entry.get("tags"))
    return rows.problem_with_turns(str(columns.get("messages", "conversations")), str(tags.get("role_tag", "from")),
                                   str(tags.get("content_tag", "value")))


LLAMA_FACTORY = Tool(NAME, TABLE, PREFIXES, DEFAULTS, _finish)
