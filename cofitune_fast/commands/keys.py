"""The configuration's keys with their defaults and a line each: for `--help`, and for a refusal before heavy imports.

The table repeats what `config` and `training.arguments` say, which take seconds to import. A test compares them.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CofituneError
from ..yaml_text import read_yaml


class Key(NamedTuple):
    default: str
    line: str


KEYS: dict[str, Key] = {name: Key(*entry) for name, entry in {
    "title": ("CoFiTune run", "title of the report"),
    "preset": ("default", "default, or paper for CoFiTune as published"),
    "region": ("", "what is trained, such as ffn@50%-100%; train takes that one, run searches one"),
    "loss": ("ce", "ce (cross entropy), dft or eaft"),
    "storage": ("auto", "of weights and optimizer states: auto, fp32, bf16_split, bf16_sr, bf16 or int8"),
    "delta": ("", "a trained delta: a folder, or a hub id, OWNER/NAME or OWNER/NAME@REVISION"),
    "output": ("", "the folder for what comes out"),
    "model.path": ("", "the base: a folder, a hub id or a GGUF file; --model for short"),
    "model.gguf_file": ("", "a GGUF file inside model.path"),
    "model.dtype": ("auto", "auto (as stored), bfloat16 or float32"),
    "model.device": ("", "cpu, cuda, cuda:0 or mps; by default the first GPU, else the CPU"),
    "model.attn_implementation": ("", "attention of transformers: sdpa, eager, flash_attention_2"),
    "model.quantize": ("none", "none, int8 or nf4: of everything outside the region"),
    "model.roles": ("", "roles of the weights where the structure does not show them: {ffn.up: mlp.fc1}"),
    "data.train": ("", "training rows: a data file, a folder or a hub id; --data for short"),
    "data.valid": ("", "rows on which the search chooses"),
    "data.test": ("", "rows of the final scores"),
    "data.max_length": ("512", "longest row in tokens"),
    "data.limit": ("", "use only the first training rows"),
    "data.metric": ("", "likelihood, exact, bleu, chrf, rouge_l, exact_answer, last_number; by default by the data"),
    "data.on_bad_row": ("stop", "stop, or skip rows that cannot be used"),
    "data.thinking": ("auto", "thoughts of a model that thinks: auto, with, without or empty"),
    "data.date": ("", "the day that the chat template writes, YYYY-MM-DD; by default today"),
    "versatility.valid": ("", "general tasks for the search: a folder or a YAML file; --versatility for short"),
    "versatility.test": ("", "general tasks for the final scores"),
    "versatility.limit": ("", "items per task"),
    "versatility.generate": ("false", "add tasks in which the model must write (IFEval)"),
    "versatility.drift_rows": ("64", "responses on which the KL to the base is measured"),
    "importance.file": ("", "importance that was measured before; --importance for short"),
    "importance.samples": ("64", "rows that are measured"),
    "importance.batch_size": ("8", "rows at once"),
    "importance.dropout": ("0.003", "noise between the two passes"),
    "importance.seed": ("0", "seed of the noise"),
    "mask.preset": ("none", "none, paper, rank or rank-output; --mask for short"),
    "mask.mode": ("update", "the mask damps the update, or the gradient"),
    "anchor.weight": ("1.0", "weight of the KL to the base; 0: no anchor"),
    "anchor.rows": ("2", "anchor texts added to each batch"),
    "anchor.texts": ("192", "texts that the base writes, once"),
    "anchor.tokens": ("48", "longest text in tokens"),
    "anchor.prompts": ("general", "general, task or a file"),
    "anchor.temperature": ("1.0", "sampling temperature"),
    "anchor.top_k": ("64", "tokens stored at each position"),
    "anchor.seed": ("0", "seed of the sampling"),
    "anchor.loss": ("kl", "kl, reverse_kl or ce"),
    "anchor.source": ("answers", "answers, rows or free"),
    "anchor.thinking": ("mixed", "where answers of a thinking model begin: mixed, template, empty or answer"),
    "anchor.thought_tokens": ("512", "longest thought, with answer"),
    "memory.prefix_cache": ("auto", "auto or off: keep the output of the layers below the region on disk"),
    "memory.prefix_cache_limit": ("20GiB", "room for all such caches"),
    "memory.prefix_weights": ("device", "device or host"),
    "memory.packing": ("auto", "auto, on or off: rows that begin alike share tokens"),
    "memory.gradient_release": ("off", "off, exact or lagged"),
    "memory.optimizer_states": ("device", "device or host"),
    "plan.response_length": ("", "response tokens per row"),
    "plan.rows": ("", "training rows"),
    "plan.flops": ("", "FLOP/s of another machine"),
    "plan.bandwidth": ("", "bytes/s of its memory"),
    "plan.transfer": ("", "bytes/s between it and its host"),
    "search.space": ("sizes", "a named space, a YAML file or a list of levels; --search for short"),
    "search.strategy": ("racing", "racing, greedy or exhaustive"),
    "search.rungs": ("", "shares of a node's training at which nodes are compared"),
    "search.beam": ("", "nodes of a level that go on"),
    "search.keep": ("", "share of the nodes that pass a rung"),
    "search.early": ("", "signal or uni: what early rungs are judged by"),
    "search.confidence": ("", "confidence at which a node is dropped"),
    "search.learning_rate": ("size", "size scales the rate by a region's size; or fixed"),
    "search.rate_factors": ("[1.0]", "multiples of the rate to try"),
    "search.prior": ("none", "none, gradient, kl or spectrum: order of a level's regions"),
    "search.prior_keep": ("1.0", "share of them that is tried"),
    "search.budget": ("", "end after such as '2 full-sft', '1.5h' or '3M tokens'"),
    "search.budget_memory": ("", "try only regions that train within such as 24GiB"),
    "search.budget_time": ("", "the same for time, as a share of full SFT's"),
    "search.training": ("{}", "training arguments of the nodes"),
    "search.checkpoint_minutes": ("5.0", "time between checkpoints of a node"),
    "search.executor": ("in-process", "in-process, processes or ray"),
    "search.workers": ("", "number of processes"),
    "search.ray_address": ("", "a Ray cluster"),
    "run.full_sft": ("true", "train full SFT too, as the contrast"),
    "run.full_sft_training": ("{}", "its training arguments"),
    "compare.methods": ("[]", "names of methods, or mappings"),
    "compare.seeds": ("[1, 2, 3]", "seeds of every run"),
    "compare.tasks": ("{}", "{name: the keys of data}"),
    "compare.learning_rates": ("{}", "{method: [rates]}"),
    "compare.general": ("", "a file of general rows"),
    "compare.limit": ("", "training rows of each task"),
    "compare.executor": ("in-process", "in-process, processes or ray"),
    "compare.workers": ("", "number of processes"),
    "compare.ray_address": ("", "a Ray cluster"),
    "compare.full_sft": ("{}", "old name of run.full_sft_training"),
}.items()}
TRAINING: dict[str, Key] = {name: Key(*entry) for name, entry in {
    "learning_rate": ("", "by default from the region's size"),
    "num_train_epochs": ("1", "epochs"),
    "max_steps": ("-1", "steps, in place of epochs"),
    "per_device_train_batch_size": ("8", "rows of a batch"),
    "gradient_accumulation_steps": ("1", "batches of a step"),
    "lr_scheduler_type": ("cosine", "course of the rate"),
    "warmup_steps": ("0.03", "steps, or below 1 their share"),
    "weight_decay": ("0.0", "decay of weights"),
    "max_grad_norm": ("1.0", "clipping; 0: none"),
    "seed": ("42", "seed"),
    "gradient_checkpointing": ("false", "less memory, more time"),
    "eval_strategy": ("no", "no, steps or epoch: evaluate on data.valid"),
    "eval_steps": ("", "steps between evaluations"),
    "load_best_model_at_end": ("false", "keep the weights of the best evaluation"),
    "early_stopping_patience": ("", "stop after so many evaluations without gain"),
    "save_strategy": ("no", "no, steps, epoch or best: checkpoints"),
    "save_steps": ("500", "steps between checkpoints"),
    "checkpoint_minutes": ("10", "minutes between checkpoints of train that it removes at its end; 0: none"),
    "resume_from_checkpoint": ("", "true or a checkpoint: go on from there"),
    "logging_steps": ("10", "steps between two lines"),
    "report_to": ("none", "tensorboard, wandb or another one"),
}.items()}
"""The main arguments of transformers.TrainingArguments under `training`; the others are taken too."""

CHOICES: dict[str, tuple[str, ...]] = {name: tuple(words.split()) for name, words in {
    "preset": "default paper", "loss": "ce dft eaft", "storage": "auto fp32 bf16_split bf16_sr bf16 int8",
    "model.dtype": "auto bfloat16 float32", "model.quantize": "none int8 nf4",
    "data.metric": "likelihood exact bleu chrf rouge_l exact_answer last_number", "data.on_bad_row": "stop skip",
    "data.thinking": "auto with without empty", "mask.mode": "update gradient",
    "anchor.loss": "kl reverse_kl ce", "anchor.source": "answers rows free",
    "anchor.thinking": "mixed template empty answer", "memory.prefix_cache": "auto off",
    "memory.prefix_weights": "device host", "memory.packing": "auto on off",
    "memory.gradient_release": "off exact lagged", "memory.optimizer_states": "device host",
    "search.early": "signal uni", "search.learning_rate": "size fixed", "search.prior": "none gradient kl spectrum",
    "search.executor": "in-process processes ray", "compare.executor": "in-process processes ray",
}.items()}
"""The values of keys that have few."""

SECTIONS: dict[str, tuple[str, ...]] = {
    "demo": ("model", "data", "training", "anchor", "search", "run", "output"),
    "run": ("title", "preset", "model", "data", "versatility", "region", "training", "loss", "anchor", "mask",
            "importance", "search", "run", "memory", "storage", "output"),
    "search": ("title", "preset", "model", "data", "versatility", "training", "loss", "anchor", "search",
               "run.full_sft_training", "memory", "storage", "output"),
    "train": ("preset", "model", "data", "region", "training", "loss", "anchor", "mask", "importance", "memory",
              "storage", "output"),
    "evaluate": ("model", "data", "versatility", "region", "delta"),
    "merge": ("model", "delta", "output"),
    "export": ("model", "delta", "output"),
    "compare": ("title", "model", "data", "versatility", "region", "training", "anchor", "importance", "compare",
                "run.full_sft_training", "memory", "storage", "output"),
    "importance": ("model", "data", "region", "importance", "output"),
    "analyze": ("title", "model", "data.test", "data.max_length", "delta", "output"),
    "plan": ("model", "data.max_length", "region", "training", "anchor", "mask", "memory", "storage", "plan"),
    "env": ("model",),
    "init": ("model", "data", "versatility", "region", "training", "loss", "anchor", "memory", "storage"),
    "data": ("model", "data", "versatility"),
    "import-config": (),
}
"""The sections and keys that each command reads."""
_OPEN = {"training", *(name for name, key in KEYS.items() if key.default == "{}"), "model.roles"}
_TRAINING_ROWS = ("init", "train", "run", "search", "importance")  # commands that read data.train in any case
_DATA_FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz")


def keys_of(command: str) -> Iterator[tuple[str, Key]]:
    """Yield the keys that a command reads, with their full names, section by section."""
    for section in SECTIONS.get(command, ()):
        table = {f"training.{name}": key for name, key in TRAINING.items()} if section == "training" else KEYS
        yield from ((name, key) for name, key in table.items() if name == section or name.startswith(f"{section}."))


def check_early(command: str, arguments: Sequence[str], own: Collection[str]) -> None:
    """Refuse what can be told from names and plain values alone: an unknown key; a value that is none of a few, or no
    number; a settings file, training file or model that is not there.

    Args:
        arguments: those of a command that takes configuration keys.
        own: names of the command's own options, without dashes in front.

    Raises:
        CofituneError: one sentence for the first flaw.
    """
    given: dict[str, Any] = {}
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        following = value if equals else next(iter(arguments[place + 1 : place + 2]), "")
        if name in ("-c", "--config") and following:
            content = read_yaml(following, "configuration")
            if isinstance(content, Mapping):
                _check_names(content, following)
                given = {**_flat(content), **given}
                _check_values(given, following)
        elif name.startswith("--") and name[2:] not in own:
            key = name[2:].replace("-", "_")
            _check_name(key, "the command line", also=own)
            given[key] = following
            if equals or not following.startswith("--"):
                _check_values({key: following}, "the command line")
    for key in ("data", "data.train") if command in _TRAINING_ROWS else ():
        path = given.get(key)
        if isinstance(path, str) and path.endswith(_DATA_FILES) and "\0" not in path \
                and not os.path.exists(os.path.expanduser(path)):
            raise CofituneError(f"The data file {path} does not exist; {key} names it.")
    model = str(given.get("model.path", given.get("model", "")))
    if model.startswith((".", "/", "~")) and "\0" not in model and not os.path.exists(os.path.expanduser(model)):
        raise CofituneError(f"No model at {model}: the folder does not exist.")


def _flat(content: Mapping[Any, Any]) -> dict[str, Any]:
    inside = {f"{section}.{key}": value for section, keys in content.items() if isinstance(keys, Mapping)
              for key, value in keys.items()}
    return {**content, **inside}


def _check_values(given: Mapping[str, Any], source: str) -> None:
    """Refuse a text that is none of a key's few values, or no number where one is wanted; the rest needs `config`."""
    for key, value in given.items():
        if not isinstance(value, str) or value in ("", "null", "~"):
            continue
        if key in CHOICES and value not in CHOICES[key]:
            raise CofituneError(f"{key} in {source} is wrong: choose one of {', '.join(CHOICES[key])} (given: "
                                f"{value!r}).")
        default = KEYS[key].default if key in KEYS else ""
        if re.fullmatch(r"[\d.]+", default) and not re.fullmatch(r"[-+]?(\d[\d_]*)?\.?\d*(e[-+]?\d+)?", value.lower()):
            raise CofituneError(f"{key} in {source} is wrong: it must be a number (given: {value!r}).")


def _check_names(content: Mapping[Any, Any], source: str) -> None:
    for section, keys in content.items():
        _check_name(str(section), source)
        if isinstance(keys, Mapping) and (section not in _OPEN or section == "training"):
            for key in keys:
                _check_name(f"{section}.{key}", source)


def _check_name(name: str, source: str, also: Collection[str] = ()) -> None:
    section, _, key = name.partition(".")
    sections = {known.partition(".")[0] for known in KEYS} | {"training"}
    if section not in sections:
        raise _unknown(name, section, [*sections, *also], "", source)
    inside = {known.partition(".")[2] for known in KEYS if known.startswith(f"{section}.")}
    if section == "training" and key not in (known := training_names()) and \
            difflib.get_close_matches(key, known, n=1, cutoff=0.85):
        raise _unknown(name, key, known, "training.", source)
    if key and section not in _OPEN and key not in inside and f"{section}.{key.partition('.')[0]}" not in _OPEN:
        raise _unknown(name, key, inside, f"{section}.", source)


def _unknown(name: str, part: str, known: Collection[str], before: str, source: str) -> CofituneError:
    if not before and "." in name:  # a misspelt section: its keys are known too
        every = [*KEYS, *(f"training.{one}" for one in training_names())]
        nearest = difflib.get_close_matches(name, every, n=1, cutoff=0.8)
    else:
        nearest = difflib.get_close_matches(part, sorted(known), n=1, cutoff=0.6)
    hint = f"did you mean {before}{nearest[0]}?" if nearest else f"known are {', '.join(sorted(known))}."
    return CofituneError(f"Unknown key {name} in {source}; {hint}")


@cache
def training_names() -> set[str]:
    """Return the names of Trainer's arguments, read from its source, as an import of it takes seconds."""
    package = importlib.util.find_spec("transformers")
    file = Path(package.origin).with_name("training_args.py") if package and package.origin else None
    if file is None or not file.is_file():
        return set()
    found = {node.target.id for block in ast.parse(file.read_text(encoding="utf-8")).body
             if isinstance(block, ast.ClassDef) and block.name == "TrainingArguments" for node in block.body
             if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    return found | set(TRAINING)


def own_options(source: str) -> set[str]:
    """Return the names of the options in the source of a command's module, without dashes in front."""
    found: set[str] = {"help", "h", "config", "json"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and any(getattr(one, "id", None) == "command" for one in
                                                     node.decorator_list):
            for argument in node.args.args:
                written = {part.value.lstrip("-") for part in ast.walk(argument) if isinstance(part, ast.Constant)
                           and isinstance(part.value, str) and re.fullmatch("--?[a-z-]+", part.value)}
                found |= written or {argument.arg.replace("_", "-")}
    return found - {"context", "as-json"}
