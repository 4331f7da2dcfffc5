"""Train one region and write its delta."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from filelock import FileLock, Timeout
from rich.console import Console
from transformers import TrainerCallback

from ..anchor import Anchor
from ..anchor.writing import thinking_for
from ..config import Config
from ..display import duration, shown_progress
from ..errors import CofituneError
from ..files import writable_folder
from ..importance import Importance
from ..models.sharded import rank
from ..regions import DEFAULT_REGION, Region, save_delta
from ..training import (
    LossNotFinite,
    TrainOptions,
    check_arguments,
    check_precision,
    evaluates,
    find_checkpoint,
    with_learning_rate,
)
from ..trials import Workbench
from .app import AsJson, ConfigFile, command, console, emit, tell
from .setup import make_workbench, needed, read_config, trial_data


@command
def train(
    context: typer.Context,
    config: ConfigFile = None,
    as_json: AsJson = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the delta of an earlier run.")] = False,
) -> None:
    """Train one region, held to the base by the anchor; writes OUTPUT/delta."""
    settings = read_config(context, config)
    with shown_progress(console):
        result = train_delta(settings, needed(settings, "output"), overwrite=overwrite, console=console)

    def show() -> None:
        tell(f"{result['delta']}: {result['region']}, {result['trained_parameters']:,} parameters, loss "
              f"{result['loss']:.3f}, {duration(result['seconds'])}; "
              f"{result['frozen_tensors']} frozen tensors unchanged")
        if result["eval_loss"] is not None:
            best = f", of step {result['best_step']}, the best" if result["best_step"] else ""
            tell(f"loss on the validation rows {result['eval_loss']:.3f}{best}")

    emit(result, as_json, show)
    if result["interrupted"]:
        console.print(f"Stopped after step {result['steps']}; go on with the same command and "
                      "--training.resume_from_checkpoint true.")
        raise typer.Exit(130)


def train_delta(settings: Config, output: str | Path, *, overwrite: bool, console: Console) -> dict[str, Any]:
    """Train `settings.region`, or the default region, and write OUTPUT/delta.

    Returns:
        The fields of TrainResult and the path of the delta.
    """
    output = writable_folder(output)
    settings.region = settings.region or DEFAULT_REGION  # the workbench must know it: it stays unquantised
    region, masked = Region.parse(settings.region), settings.mask.preset != "none"
    if settings.importance.file and not masked:
        raise CofituneError(f"importance.file is {settings.importance.file}, but mask.preset is none, so that no mask "
                            "would be made of it; set mask.preset, or leave the file out.")
    check_training(settings, output)
    lock = FileLock(output / "train.lock")
    try:
        if rank() == 0:  # ranks that train together share one lock
            lock.acquire(timeout=0)
    except Timeout:
        raise CofituneError(f"Another run is training in {output}; wait for it or choose another output folder.") \
            from None
    with lock if rank() == 0 else nullcontext():
        delta = output / "delta"
        if delta.exists() and not overwrite and not settings.training.get("resume_from_checkpoint"):
            raise CofituneError(f"{delta} holds the result of an earlier run; choose another output folder, or give "
                                "--overwrite.")
        bench = make_workbench(settings)
        check_precision(settings.training, bench.model)
        training = with_learning_rate(settings.training, bench.model, full=region.is_full)
        console.print(f"Training {region.describe(bench.model)} at a learning rate of {training['learning_rate']}",
                      highlight=False)
        masks = None
        if masked:
            masks = bench.masks(_importance(settings, bench, region, output, console), region, settings.mask.preset)

        def keep(run: dict[str, Any] | None = None) -> None:
            save_delta(bench.model, region, delta, base=bench.base, settings={
                "training": training, "mask": settings.mask.model_dump(), "storage": settings.storage,
                "loss": settings.loss, "anchor": asdict(settings.anchor), "quantize": settings.model.quantize,
                "memory": asdict(settings.memory), "run": run,
            })

        try:
            result = bench.train(
                region, output, training, TrainOptions(
                    loss=settings.loss, anchor=_anchor(settings, bench, console), masks=masks,
                    mask_mode=settings.mask.mode, storage=settings.storage,
                    memory=settings.memory,
                ),
                callbacks=[_LogLines(console)], on_last_good=keep, interruptible=True,
            ).to_dict()
        except LossNotFinite as error:
            kept = f" The weights of the step before are kept in {delta}." if delta.exists() else ""
            raise CofituneError(f"{error}{kept}") from None
        if not result["interrupted"]:
            keep(result)
    return {"delta": str(delta), **result}


def check_training(settings: Config, output: Path) -> None:
    """Refuse what can be told without the model: arguments, data files, a checkpoint that is not there.

    Raises:
        CofituneError: one sentence for the first flaw.
    """
    check_arguments(settings.training)
    data, resume = trial_data(settings), settings.training.get("resume_from_checkpoint")
    data.examples("train")
    if evaluates(settings.training):
        data.examples("valid")
    if resume:
        find_checkpoint(resume, output)


class _LogLines(TrainerCallback):
    """Print each figure that Trainer logs as a line; a bar or sparse lines show the steps between."""

    def __init__(self, console: Console):
        self.console = console

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        named = {"loss": "loss", "anchor_kl": "KL to the base", "grad_norm": "gradient norm",
                 "learning_rate": "learning rate", "eval_loss": "loss on the validation rows"}
        shown = [f"{words} {float(logs[key]):.4g}" for key, words in named.items() if (logs or {}).get(key) is not None]
        if shown:
            self.console.print(f"step {state.global_step} of {state.max_steps}  {'  '.join(shown)}",
                               soft_wrap=True)


def _anchor(settings: Config, bench: Workbench, console: Console) -> Anchor | None:
    chosen = settings.anchor
    if chosen.weight == 0:
        return None
    made = "of a data file, measured" if chosen.source == "rows" else "of the base, written"
    thinking = thinking_for(bench.tokenizer, chosen.thinking) if chosen.source == "answers" else "template"
    begun = {"mixed": ", half of them after an empty thought", "empty": ", after an empty thought",
             "answer": ", around the end of a thought", "template": ""}[thinking]
    console.print(f"The anchor: {chosen.texts} texts {made} now unless they are in the cache{begun}")
    return bench.anchor(chosen)


def _importance(
    settings: Config, bench: Workbench, region: Region, output: Path, console: Console
) -> Importance:
    if settings.importance.file:
        return Importance.load(settings.importance.file)
    console.print("Measuring the importance of the region's units")
    importance = bench.importance(None if region.is_full else region, **settings.importance.arguments())
    if rank() == 0:
        importance.save(output / "importance.safetensors")
    return importance
