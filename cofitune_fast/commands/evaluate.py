"""Score a model or a delta on speciality and versatility."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from typing import Annotated, Any

import torch
import typer

from ..config import Config
from ..display import scores_text, shown_progress
from ..display.pairs import pairs_lines
from ..errors import CofituneError
from ..scoring import pair_tasks, paired_suites, pairs_entry, suite_resolution
from .app import AsJson, ConfigFile, command, console, emit, tell
from .candidates import Evaluation
from .setup import needed, read_config

_DRIFTS = {"drift": "from the base", "task_drift": "from the base, on the task"}


@command
def evaluate(
    context: typer.Context,
    config: ConfigFile = None,
    as_json: AsJson = False,
    split: Annotated[str, typer.Option(help="valid or test")] = "test",
    limit: Annotated[int | None, typer.Option(help="Score the speciality's first rows only.")] = None,
    generate: Annotated[bool, typer.Option("--generate", help="Also let the model write: the speciality's responses, "
                                           "and IFEval's where the versatility tasks hold it.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest response for --generate and --harness.")] = None,
    harness: Annotated[str | None, typer.Option(help="Also lm-eval's scores: its task names or local files, with "
                                                "commas between.")] = None,
    against: Annotated[str | None, typer.Option(help="Another model: score it on the same items, and show differences "
                                                "and flipped items.")] = None,
    against_delta: Annotated[str | None, typer.Option("--against-delta", help="A delta of --against, or of --model if "
                                                      "there is no --against.")] = None,
    against_base: Annotated[bool, typer.Option("--against-base", help="With --delta: the same with its base.")] = False,
    show_flips: Annotated[int, typer.Option("--show-flips", help="List so many of the items that flipped.")] = 0,
) -> None:
    """Score the model on speciality and versatility, or on the speciality alone if no versatility tasks are set.

    With --delta FOLDER the fine-tuned model is scored, and also its drift: the KL to the base, in nats per token, on
    the responses of the instruction files and of the speciality. With model.quantize the delta's region stays in full
    precision; without a delta, the `region`, if one is given.

    --against compares item by item with any other model, one after the other in memory. It may have another tokenizer
    and another chat template, as each model renders the rows by its own.
    """
    settings = read_config(context, config)
    with shown_progress(console):
        content = evaluation(settings, split=split, limit=limit, generate=generate, max_new_tokens=max_new_tokens,
                             harness=_names(harness), against_base=against_base, against=against,
                             against_delta=against_delta)
    emit(content, as_json, lambda: tell(*_lines(content, show_flips)))


def _names(harness: str | None) -> list[str]:
    """Return the tasks and files of --harness, "a, b": without blanks around them, and with ~ as the home folder.

    Raises:
        CofituneError: the option is given and names nothing.
    """
    names = [os.path.expanduser(name.strip()) for name in (harness or "").split(",") if name.strip()]
    if harness is not None and not names:
        raise CofituneError(f"--harness is {harness!r}, which names no task; write names or files with commas between.")
    return names


def evaluation(
    settings: Config, *, split: str, limit: int | None, generate: bool, max_new_tokens: int | None,
    harness: list[str], against_base: bool = False, against: str | None = None, against_delta: str | None = None,
) -> dict[str, Any]:
    """Score the base of `settings`, or the base with its delta, and return plain values.

    The arguments are the command's options.

    Raises:
        CofituneError: nothing to score, or options that exclude each other; raised before the model is loaded.
    """
    if split not in ("valid", "test"):
        raise CofituneError(f"--split is {split!r}; choose valid or test.")
    path, versatility = getattr(settings.data, split), getattr(settings.versatility, split)
    if versatility and limit is not None:
        raise CofituneError("--limit is for the speciality alone; with versatility tasks use versatility.limit.")
    if path is None:
        raise CofituneError(f"Nothing to score: set data.{split}, and versatility.{split} for all of it.")
    if against_base and not (settings.delta and versatility):
        raise CofituneError(f"--against-base compares a delta with its base on a whole suite; give --delta, and set "
                            f"versatility.{split}.")
    another = against is not None or against_delta is not None
    if another and against_base:
        raise CofituneError("--against-base and --against exclude each other; to compare a delta with its base, give "
                            "--against-base alone.")
    if another and harness:
        raise CofituneError("--harness has no scores item by item that could be compared; run it on each model without "
                            "--against.")
    call = Evaluation(split, limit, generate, max_new_tokens, harness, against_base)
    rival = _rival(settings, against, against_delta) if another else None
    first = call.looked_at(settings, console.print)
    if rival is None:
        return first.score()[0]
    second = call.looked_at(rival, lambda line: None)
    first.take_common_rows(second)
    content, scores = first.score()
    gc.collect()  # the first model goes before the second one comes
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    other, other_scores = second.score()
    pairs = pair_tasks(scores, other_scores, first.tasks, same_rows=first.reads_like(second))
    content["against"] = {"models": [first.name, second.name], "notes": first.notes(second, pairs), "scores": other,
                          **pairs_entry(pairs)}
    if first.is_suite:
        one, two = paired_suites(pairs)
        content["resolution"] = [suite_resolution(one, [two], figure).to_dict() for figure in ("vers", "uni")]
    return content


def _rival(settings: Config, against: str | None, delta: str | None) -> Config:
    """Settings of the model to compare with: the same but for model and delta."""
    model = settings.model
    if against is not None:
        model = needed(settings, "model").model_copy(update={"path": os.path.expanduser(against), "gguf_file": None})
    return settings.model_copy(update={"model": model, "delta": delta and os.path.expanduser(delta)})


def _lines(content: Mapping[str, Any], show_flips: int) -> list[str]:
    """Format an evaluation as text, one line a task."""
    lines = [scores_text(content)] if "spec" in content else []
    drift = {name: content[key] for key, name in _DRIFTS.items() if key in content}
    groups = {**content["tasks"], "drift": drift, "generation": content.get("generation", {})}
    for group, scores in groups.items():
        for name, score in scores.items():
            extra = "  ".join(f"{key} {value:.3f}" for key, value in score["metrics"].items()
                              if key != score["metric"] and not key.endswith("_se"))
            lines.append(f"  {group:12}{name:32}{score['metric']} {score['value']:.3f} ± {score['se']:.3f}  {extra}")
            lines += [f"  {'':12}{'':32}{metric}: {note}" for metric, note in score.get("notes", {}).items()]
            if score.get("left_out"):
                lines.append(f"  {'':12}{'':32}{score['left_out']} more prompts are left out, as they need nltk's data "
                             "punkt_tab: run python -m nltk.downloader punkt_tab")
    for name, figures in content.get("harness", {}).items():
        lines.append(f"  {'lm-eval':12}{name:32}" + "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    lines += [entry["sentence"] for entry in content.get("resolution", [])]
    for key in ("against_base", "against"):
        if entry := content.get(key):
            lines += ["", *pairs_lines(entry, show_flips)]
    return lines
