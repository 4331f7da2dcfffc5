"""Train one region and write its delta."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import asdict
from datetime import date
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
from ..models.fingerprint import tensor_digest
from ..models.sharded import broadcast_object, is_sharded, rank
from ..regions import DEFAULT_REGION, Region, save_delta
from ..signals import exit_status, held
from ..training import (
    LossNotFinite,
    TrainOptions,
    check_arguments,
    check_precision,
    evaluates,
    refuse_standing_still,
    run_identity,
    with_learning_rate,
)
from ..training.argument_rules import CHECKPOINT_MINUTES
from ..training.checkpoint import sweep
from ..training.identity import deciding, plain
from ..trials import Workbench
from ..trials.data import content_digest, data_digest
from ..trials.head import command_line
from .app import AsJson, ConfigFile, command, console, emit, tell, warn
from .kept import Earlier, step_to_go_on_from
from .setup import check_files, look_before, make_workbench, needed, read_config, trial_data


@command
def train(
    context: typer.Context,
    config: ConfigFile = None,
    as_json: AsJson = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the delta of an earlier run.")] = False,
) -> None:
    """Train one region, held to the base by the anchor; writes OUTPUT/delta."""
    settings = read_config(context, config)
    output = Path(needed(settings, "output"))
    try:
        with shown_progress(console):
            result = train_delta(settings, output, overwrite=overwrite, console=console)
    except KeyboardInterrupt as error:
        step = step_to_go_on_from(output)
        kept = ("No checkpoint was kept, so the same command starts anew." if step is None else
                f"The same command goes on from the checkpoint of step {step}.")
        warn(f"\ncofitune: stopped at once. {kept}")
        raise typer.Exit(exit_status(error)) from None

    def show() -> None:
        if result["delta"] is None:
            tell(f"no delta yet: {result['region']}, stopped after step {result['steps']}")
            return
        tell(f"{result['delta']}: {result['region']}, {result['trained_parameters']:,} parameters, loss "
              f"{result['loss']:.3f}, {duration(result['seconds'])}; "
              f"{result['frozen_tensors']} frozen tensors unchanged")
        if result["eval_loss"] is not None:
            best = f", of step {result['best_step']}, the best" if result["best_step"] else ""
            tell(f"loss on the validation rows {result['eval_loss']:.3f}{best}")

    emit(result, as_json, show)
    if result["interrupted"]:
        warn(f"Stopped after step {result['steps']} with a checkpoint; the same command goes on from there.")
        raise typer.Exit(128 + result["signal"])


def train_delta(settings: Config, output: str | Path, *, overwrite: bool, console: Console) -> dict[str, Any]:
    """Train `settings.region`, or the default region, and write OUTPUT/delta.

    A run that was stopped goes on from its last checkpoint; a finished one is not trained again.

    Returns:
        The fields of TrainResult and the path of the delta, which is None after a stop.
    """
    output = writable_folder(output)
    settings.region = settings.region or DEFAULT_REGION  # the workbench must know it: it stays unquantised
    if settings.importance.file and settings.mask.preset == "none":
        raise CofituneError(f"importance.file is {settings.importance.file}, but mask.preset is none, so that no mask "
                            "would be made of it; set mask.preset, or leave the file out.")
    check_training(settings)
    lock = FileLock(output / "train.lock")
    try:
        if rank() == 0:  # ranks that train together share one lock
            lock.acquire(timeout=0)
    except Timeout:
        raise CofituneError(f"Another run is training in {output}; wait for it or choose another output folder.") \
            from None
    with lock if rank() == 0 else nullcontext():
        return _train(settings, output, overwrite, console)


def _train(settings: Config, output: Path, overwrite: bool, console: Console) -> dict[str, Any]:
    region, delta = Region.parse(settings.region), output / "delta"
    earlier = Earlier(output, settings.training.get("resume_from_checkpoint"), overwrite)
    known = _known_identity(settings)
    earlier.check(known)  # before anything is loaded
    date_given = settings.data.date is not None
    began = earlier.began or str(date.today())
    settings.data.date = settings.data.date or began

    evaluated = evaluates(settings.training)
    looks = look_before(settings, ["train", "valid"] if evaluated else ["train"], evaluated=evaluated)
    refuse_standing_still(settings.training, len(looks[0].files["train"].encoded))
    bench = make_workbench(settings, looks=looks)
    check_precision(settings.training, bench.model)
    training = with_learning_rate(settings.training, bench.model, full=region.is_full)
    known |= plain({
        "training": deciding(training), "base": {"fingerprint": bench.base.fingerprint, "dtype": bench.base.dtype},
        "roles": bench.roles, "template": _text_digest(str(bench.tokenizer.chat_template)),
        "date": bench.written_date,
    })
    if known["date"] and not date_given:
        console.print(f"The chat template writes the date: {known['date']} (data.date)")
    earlier.check(known)
    if earlier.finished is not None:
        console.print(f"{delta} is finished; nothing is trained")
        return {**earlier.finished, "delta": str(delta)}

    checkpoint = broadcast_object(earlier.take())
    console.print(f"Training {region.describe(bench.model)} at a learning rate of {training['learning_rate']}")
    masks = None
    if settings.mask.preset != "none":
        importance = _importance(settings, bench, region, output, console, resumed=checkpoint is not None)
        masks = bench.masks(importance, region, settings.mask.preset)
    options = TrainOptions(loss=settings.loss, anchor=_anchor(settings, bench, console), masks=masks,
                           mask_mode=settings.mask.mode, storage=settings.storage, memory=settings.memory)
    identity = {**run_identity(region, training, options, bench.train_rows,
                               bench.valid_rows if evaluates(training) else None, bench.base), **known}

    def keep(path: Path, run: dict[str, Any] | None) -> None:
        save_delta(bench.model, region, path, base=bench.base, settings={
            "command": command_line(), "training": training, "mask": settings.mask.model_dump(),
            "storage": settings.storage, "loss": settings.loss, "anchor": asdict(settings.anchor),
            "quantize": settings.model.quantize, "memory": asdict(settings.memory), "run": run, "identity": identity,
            "began": began,
        })

    kept: list[Path] = []

    def keep_last_good() -> None:
        path = output / "delta-last-good" if delta.exists() else delta
        keep(path, None)
        kept.append(path)

    arguments = {CHECKPOINT_MINUTES: 10, **training, "resume_from_checkpoint": checkpoint}
    try:
        result = bench.train(
            region, output, arguments, options, callbacks=[_LogLines(console)],
            on_last_good=keep_last_good, interruptible=True, identity=identity,
        ).to_dict()
    except LossNotFinite as error:
        where = f" The weights of the step before are kept in {kept[0]}." if kept else ""
        raise CofituneError(f"{error}{where}") from None
    if result["interrupted"]:
        return {**result, "delta": None}
    with held():
        _refuse_the_base(bench, region, result)
        keep(delta, result)
        if rank() == 0:
            sweep(output, not_of=result["run"] if overwrite else None)
    return {**result, "delta": str(delta)}


def check_training(settings: Config) -> None:
    """Refuse what can be told without the model: arguments and data files.

    Raises:
        CofituneError: one sentence for the first flaw.
    """
    check_arguments(settings.training)
    trial_data(settings).file("train")
    if evaluates(settings.training) and settings.data.valid is None:
        raise CofituneError("training.eval_strategy asks for evaluations, and there are no rows for them: set "
                            "data.valid to a data file, a folder or a hub id.")
    check_files(settings)


def _known_identity(settings: Config) -> dict[str, Any]:
    """Return what decides the result, as far as it is known without the model; named as in the configuration."""
    data, masked, given = settings.data, settings.mask.preset != "none", settings.importance.file
    known = plain({
        "region": str(Region.parse(settings.region)),
        "loss": settings.loss, "storage": settings.storage, "anchor": settings.anchor.identity(),
        "memory": {"packing": settings.memory.packing, "gradient_release": settings.memory.gradient_release},
        "mask": settings.mask.model_dump() if masked else None,
        "importance": None if not masked else {"file": content_digest(Path(given))} if given
        else settings.importance.arguments(),
        "quantize": settings.model.quantize,
        "data": {"train": data_digest(data.train)[:16], "max_length": data.max_length, "limit": data.limit,
                 "on_bad_row": data.on_bad_row, "thinking": data.thinking},
    })
    if "learning_rate" in settings.training:  # otherwise the model's width decides it
        known["training"] = deciding(settings.training)
    return known


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _refuse_the_base(bench: Workbench, region: Region, result: dict[str, Any]) -> None:
    """Refuse a result that is the base to the bit.

    Raises:
        CofituneError: no tensor of the region has changed.
    """
    if is_sharded(bench.model):
        return
    if all(tensor_digest(tensor) == bench.digests.get(name) for name, tensor in region.parameters(bench.model)):
        raise CofituneError(f"Training changed nothing: after {result['steps']} steps the region has the base's bits. "
                            "Raise training.learning_rate, or give more rows or epochs.")


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
    settings: Config, bench: Workbench, region: Region, output: Path, console: Console, *, resumed: bool
) -> Importance:
    """Load the importance that is named, or that of the run that is gone on with; else measure it."""
    own = output / "importance.safetensors"
    if settings.importance.file or (resumed and own.is_file()):
        return Importance.load(settings.importance.file or own)
    console.print("Measuring the importance of the region's units")
    importance = bench.importance(None if region.is_full else region, **settings.importance.arguments())
    if rank() == 0:
        importance.save(own)
    return importance
