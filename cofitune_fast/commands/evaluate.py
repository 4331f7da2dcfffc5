"""Score a model or a delta on speciality and versatility."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from ..config import Config
from ..display import scores_text
from ..errors import CofituneError
from ..regions import load_delta, read_delta
from ..scoring import generation_score, harness_scores, needs_packages, read_task, score_task, tasks_to_write
from .app import AsJson, ConfigFile, command, emit
from .setup import make_workbench, read_config


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
) -> None:
    """Score the model on speciality and versatility, or on the speciality alone if no versatility tasks are set.

    With --delta FOLDER the fine-tuned model is scored, and also its drift: the KL to the base, in nats per token of the
    instruction files' responses. With model.quantize the delta's region stays in full precision; without a delta, the
    `region`, if one is given.
    """
    content = evaluation(read_config(context, config), split=split, limit=limit, generate=generate,
                         max_new_tokens=max_new_tokens, harness=harness.split(",") if harness else [])
    emit(content, as_json, lambda: print(*_lines(content), sep="\n"))


def evaluation(
    settings: Config, *, split: str, limit: int | None, generate: bool, max_new_tokens: int | None, harness: list[str]
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
    to_write = tasks_to_write(path, versatility, limit=limit, versatility_limit=settings.versatility.limit) \
        if generate else []
    if harness:
        needs_packages("--harness", "lm_eval")
    bench = make_workbench(settings, read_delta(settings.delta).region if settings.delta else None)
    base = None
    if settings.delta:
        base = bench.base_states(split, settings.versatility.drift_rows) if versatility else None
        load_delta(bench.model, settings.delta, base_fingerprint=bench.base.fingerprint)
    if versatility:
        content = replace(bench.score(split), drift=base.drift(bench.model) if base else None).to_dict()
    else:
        score = score_task(bench.model, bench.tokenizer, read_task(path, limit=limit, metric=settings.data.metric))
        content = {"tasks": {"speciality": {path: score.to_dict()}}}
    if to_write:
        content["generation"] = {
            task.name: generation_score(bench.model, bench.tokenizer, task, max_new_tokens=max_new_tokens).to_dict()
            for task in to_write
        }
    if harness:
        content["harness"] = harness_scores(
            bench.model, bench.tokenizer, harness, limit=limit or settings.versatility.limit,
            max_new_tokens=max_new_tokens,
        )
    return content


def _lines(content: Mapping[str, Any]) -> list[str]:
    """Format an evaluation as text, one line a task."""
    lines = [scores_text(content)] if "spec" in content else []
    drift = {"drift": {"from the base": content["drift"]}} if "drift" in content else {}
    groups = {**content["tasks"], **drift, "generation": content.get("generation", {})}
    for group, scores in groups.items():
        for name, score in scores.items():
            extra = "  ".join(f"{key} {value:.3f}" for key, value in score["metrics"].items() if key != score["metric"])
            lines.append(f"  {group:12}{name:32}{score['metric']} {score['value']:.3f} ± {score['se']:.3f}  {extra}")
    for name, figures in content.get("harness", {}).items():
        lines.append(f"  {'lm-eval':12}{name:32}" + "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    return lines
