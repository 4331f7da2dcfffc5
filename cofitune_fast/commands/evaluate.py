"""Score a model or a delta on speciality and versatility."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ..config import Config
from ..display import scores_text, shown_progress
from ..errors import CofituneError
from ..methods.entries import flips_entry
from ..regions import load_delta, read_delta
from ..report.flips import counts as flip_counts
from ..report.flips import p_value
from ..scoring import (
    SuiteScores,
    Task,
    difference_error,
    generation_score,
    harness_scores,
    needs_packages,
    read_task,
    score_task,
    suite_resolution,
    tasks_to_write,
    with_drifts,
    without_refused,
)
from ..scoring.results import SUMMARY
from ..trials import Workbench
from .app import AsJson, ConfigFile, command, console, emit, tell
from .setup import look_before, make_workbench, read_config

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
    against_base: Annotated[bool, typer.Option("--against-base", help="With --delta: score the base too, and show the "
                                               "differences and the items that flipped.")] = False,
) -> None:
    """Score the model on speciality and versatility, or on the speciality alone if no versatility tasks are set.

    With --delta FOLDER the fine-tuned model is scored, and also its drift: the KL to the base, in nats per token, on
    the responses of the instruction files and of the speciality. With model.quantize the delta's region stays in full
    precision; without a delta, the `region`, if one is given.
    """
    settings = read_config(context, config)
    with shown_progress(console):
        content = evaluation(settings, split=split, limit=limit, generate=generate, max_new_tokens=max_new_tokens,
                             harness=_names(harness), against_base=against_base)
    emit(content, as_json, lambda: tell(*_lines(content)))


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
    harness: list[str], against_base: bool = False,
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
    to_write = tasks_to_write(path, versatility, limit=limit, versatility_limit=settings.versatility.limit,
                              on_bad_row=settings.data.on_bad_row) if generate else []
    if harness:
        needs_packages("--harness", "lm_eval")
    region = read_delta(settings.delta).region if settings.delta else None
    looks = look_before(settings, [split], [split] if versatility else [])
    bench = make_workbench(settings, region, looks=looks)
    base, before = {}, None
    if settings.delta:
        base = bench.all_base_states(split, settings.versatility.drift_rows) if versatility else {}
        before = bench.score(split) if against_base else None
        load_delta(bench.model, settings.delta, base_fingerprint=bench.base.fingerprint)
    if versatility:
        scores = with_drifts(bench.score(split), bench.model, base)
        others = [] if before is None else [before]
        content = {**scores.to_dict(), "resolution": [suite_resolution(scores, others, figure).to_dict()
                                                      for figure in ("vers", "uni")]}
        if before is not None:
            content["against_base"] = _against(before, scores)
    else:
        task = read_task(path, limit=limit, metric=settings.data.metric, on_bad_row=settings.data.on_bad_row)
        if settings.data.on_bad_row == "skip":
            task = without_refused(task, bench.tokenizer)
        score = score_task(bench.model, bench.tokenizer, task)
        content = {"tasks": {"speciality": {path: score.to_dict()}}}
    if to_write:
        content["generation"] = {task.name: _generation(bench, task, max_new_tokens) for task in to_write}
    if harness:
        content["harness"] = harness_scores(
            bench.model, bench.tokenizer, harness, limit=limit or settings.versatility.limit,
            max_new_tokens=max_new_tokens,
        )
    return content


def _against(before: SuiteScores, after: SuiteScores) -> dict[str, Any]:
    """Return differences with paired standard errors, and flipped items, of the fine-tuned model and its base."""
    return {
        "differences": {figure: {"value": getattr(after, figure) - getattr(before, figure),
                                 "se": difference_error(after, before, figure)} for figure in SUMMARY},
        "flips": flips_entry(before.to_dict(items=True), after.to_dict(items=True)),
    }


def _generation(bench: Workbench, task: Task, max_new_tokens: int | None) -> dict[str, Any]:
    """Score a task by generation; `left_out` counts items that cannot be checked on this machine."""
    score = generation_score(bench.model, bench.tokenizer, task, max_new_tokens=max_new_tokens)
    return {**score.to_dict(), "left_out": len(task.items) - score.n}


def _lines(content: Mapping[str, Any]) -> list[str]:
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
    if against := content.get("against_base"):
        lines += [f"  {'- base':12}{figure:32}{difference['value']:+.3f} ± {difference['se']:.3f}"
                  for figure, difference in against["differences"].items()]
        lines += [f"  {'flips':12}{group:32}{flip_counts(flips)} of {flips['items']}, p {p_value(flips['p'])}"
                  for group, flips in against["flips"].items()]
    return [*lines, *(entry["sentence"] for entry in content.get("resolution", []))]
