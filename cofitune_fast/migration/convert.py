"""Conversion of a file: the tool is recognised, its table settles the keys, and our own checks have the last word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..config import Config
from ..errors import CofituneError
from ..training.arguments import check_arguments
from ..validation import validated
from .axolotl import AXOLOTL
from .draft import Draft
from .llama_factory import LLAMA_FACTORY
from .ms_swift import MS_SWIFT
from .source import read_given
from .tool import REGION_INSTEAD, Tool, without_anchor

TOOLS: dict[str, Tool] = {"axolotl": AXOLOTL, "llama-factory": LLAMA_FACTORY, "ms-swift": MS_SWIFT}
_OF_THE_MACHINE = ("report_to", "tf32", "ddp_backend")  # what is right for them depends on where the run will be
_AS_MANY = ("start as many by torchrun (docs/how-to/big-model.md), or multiply training.gradient_accumulation_steps by "
            "{}")


def import_config(path: str | Path, tool: str | None = None, model: str | None = None) -> Draft:
    """Read another tool's configuration and draft ours.

    Args:
        path: a YAML or JSON file, or a shell script with the tool's command; nothing of it is executed.
        tool: a name of TOOLS; by default it is recognised by the keys.
        model: a local copy of the base, in place of the one that the file names.

    Raises:
        CofituneError: the file cannot be read, is of no known tool or of several, or asks for something else than
            supervised fine-tuning; one sentence.
    """
    path = Path(path)
    given = read_given(path)
    if tool is not None and tool not in TOOLS:
        raise CofituneError(f"--from is {tool!r}; choose one of {', '.join(TOOLS)}.")
    known = TOOLS[tool] if tool else _recognised(given.values, given.tool, path)
    draft = Draft(known.name, path, given.values, model, given.processes)
    _settle_keys(draft, known)
    known.finish(draft)
    for ours, (key, value, remark) in known.defaults.items():
        if not (ours == "training.learning_rate" and _is_default_region(draft)):
            draft.default(f"no {key}", ours, value, remark)
    if not _is_default_region(draft):
        without_anchor(draft)
    _without_evaluations(draft)
    _note_processes(draft)
    _checked(draft)
    draft.put_in_order()
    return draft


def _recognised(values: dict[str, Any], named: str | None, path: Path) -> Tool:
    """The tool that a script starts, else the one of whose own keys, which no other tool has, the file holds most."""
    if named:
        return next(tool for tool in TOOLS.values() if tool.name == named)
    if {"compute_environment", "distributed_type"} <= values.keys():
        raise CofituneError(f"{path} says how accelerate starts processes, and nothing of a training; name the "
                            "training's configuration.")
    if {"model_name_or_path", "dataset_name"} <= values.keys():
        raise CofituneError(f"{path} looks like a configuration of TRL, which is not read; docs/how-to/trl.md "
                            "has TRL's own trainer with a region.")
    if {"model_class", "dist_config", "sample_backend", "peft_config"} & values.keys() and "model" in values:
        raise CofituneError(f"{path} is of LLaMA-Factory's new form (v1), which is not read; write it in the form with "
                            "model_name_or_path and finetuning_type.")
    counts = {}
    for tool in TOOLS.values():
        others = {key for other in TOOLS.values() if other is not tool for key in other.table}
        counts[tool.name] = sum(key in tool.table and key not in others for key in values)
    best = max(counts.values())
    candidates = [name for name, count in counts.items() if count == best]
    if best == 0:
        raise CofituneError(f"{path} has no key by which Axolotl, LLaMA-Factory or ms-swift is recognised; if it is of "
                            f"one of them, name it: --from {' or '.join(TOOLS)}.")
    if len(candidates) > 1:
        raise CofituneError(f"{path} may be of {' or '.join(candidates)}: its keys are known to both; say which by "
                            f"--from {' or '.join(TOOLS)}.")
    return next(tool for tool in TOOLS.values() if tool.name == candidates[0])


def _settle_keys(draft: Draft, tool: Tool) -> None:
    for key, value in draft.source.items():
        if value is None or value in ("", [], {}) or key in tool.ignored:
            continue
        rule = tool.table.get(key) or next((rule for start, rule in tool.prefixes.items() if key.startswith(start)),
                                           None)
        if rule is None:
            draft.unknown(key)
        elif isinstance(value, str) and ("$(" in value or value.startswith(("$", "`"))):
            draft.refuse(key, "the shell would work this value out, and nothing is executed here; write it out")
        elif isinstance(rule, str):
            draft.take(key, rule, value)
        else:
            rule(draft, key, value)


def _is_default_region(draft: Draft) -> bool:
    """True if a region of ours stands in for an adapter."""
    return any(note.ours == "region" and note.text == REGION_INSTEAD for note in draft.notes)


def _without_evaluations(draft: Draft) -> None:
    """Withdraw what is about evaluations if there are no rows for them."""
    if "data.valid" in draft.settings:
        return
    about = ("training.eval_", "training.load_best", "training.metric_for_best", "training.greater_is",
             "training.early_stopping")
    for ours in [name for name in draft.settings if name.startswith(about)]:
        draft.withdraw(ours, "needs data.valid, a file of validation rows")


def _note_processes(draft: Draft) -> None:
    """Say that several processes take more rows a step, as batch sizes are those of one process."""
    count = draft.processes
    if count is None:
        draft.refuse("number of processes", f"the file does not say it, and N of them take N times the rows a step: "
                                            f"{_AS_MANY.format('N')}")
    elif count > 1:
        draft.refuse(f"{count} processes", f"they take {count} times the rows a step: {_AS_MANY.format(count)}")


def _checked(draft: Draft) -> None:
    """Withdraw the training arguments that are refused here, with the sentences of their refusals, and validate."""
    while True:
        training = {name.partition(".")[2]: value for name, value in draft.settings.items()
                    if name.startswith("training.")}
        try:
            check_arguments({name: value for name, value in training.items() if name not in _OF_THE_MACHINE})
            break
        except CofituneError as error:
            named = re.search(r"training\.(\w+)", str(error))
            if named is None or named[1] not in training:
                raise
            draft.withdraw(f"training.{named[1]}", str(error).rstrip("."))
    values: dict[str, Any] = {}
    for name, value in draft.settings.items():
        section, _, key = name.partition(".")
        if key:
            values.setdefault(section, {})[key] = value
        else:
            values[section] = value
    validated(Config, values, f"what {draft.file} becomes")
