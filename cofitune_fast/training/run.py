"""One training run: train a region and prove that nothing else changed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from ..data import Encoded
from ..errors import CofituneError
from ..files import writing
from ..memory import PeakMemory
from ..memory.abilities import checkpoint_ability, why_not_cut
from ..memory.cached_prefix import open_prefix
from ..memory.prefix_cache import PrefixCache
from ..memory.settings import MemorySettings
from ..models.sharded import all_ranks, broadcast_object, is_sharded, total, world_size
from ..optim.sharding import local
from ..planning.out_of_memory import is_out_of_memory
from ..progress import progress
from ..regions import BaseInfo, FrozenProof, Trainable, detach_parts
from .argument_rules import CHECKPOINT_MINUTES, PATIENCE
from .arguments import check_precision, evaluates, training_arguments
from .batching import KeyedRows
from .callbacks import Patience, Saves, ShowSteps, StopOnInterrupt
from .checkpoint import Checkpoint, find_checkpoint
from .identity import changes, run_identity
from .not_finite import LossNotFinite, NothingTrained
from .options import TrainOptions
from .out_of_memory import out_of_memory
from .rates import with_learning_rate
from .room import require_room_for_training
from .trackers import tracked
from .trainer import CoFiTuneTrainer


@dataclass
class TrainResult:
    """Result and cost of a training run.

    Attributes:
        trained_parameters: number of trained parameters.
        steps, epochs: updates made, and how often each row was seen. These and all figures but the memory's cover the
            whole run, also where it was resumed.
        tokens: tokens of the task's rows over all epochs.
        loss: mean over the steps, in nats per response token, the anchor's part included.
        seconds: wall-clock time of the training.
        steady_seconds: what the steps of this call take at the pace of those after its first: `seconds` without the
            preparation; None where there are fewer than two steps.
        peak_memory_bytes: peak memory; `peak_memory` says which memory was measured, and how.
        frozen_tensors, frozen_bytes: tensors proven unchanged, and their size.
        interrupted: a signal such as Ctrl-C ended the training early, with a checkpoint.
        signal: number of that signal.
        skipped_steps: steps that changed nothing because their gradients were not finite.
        run: random name of the run, which its checkpoints carry.
        cached_rows: rows whose frozen prefix was in the cache before the run.
        notes: things that the run could not do, in sentences.
        anchor_kl: mean KL per anchor token, in nats, base || model or, for the loss reverse_kl, model || base.
        reference_kl: mean KL to the base per token of the task's rows that is held to it, in nats.
        eval_loss: nats per response token of the evaluation rows, with the weights that are kept.
        best_step: step that made the kept weights, if the best model is kept.
    """

    region: str
    trained_parameters: int
    steps: int
    epochs: float
    tokens: int
    loss: float
    learning_rate: float
    seconds: float
    peak_memory_bytes: int
    peak_memory: str
    frozen_tensors: int
    frozen_bytes: int
    interrupted: bool = False
    cached_rows: int = 0
    notes: list[str] = field(default_factory=list)
    anchor_kl: float | None = None
    eval_loss: float | None = None
    best_step: int | None = None
    reference_kl: float | None = None
    signal: int | None = None
    skipped_steps: int = 0
    run: str = ""
    steady_seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def train_region(
    model: nn.Module,
    region: Trainable,
    rows: Sequence[Encoded],
    output_dir: str | Path,
    training: Mapping[str, Any] | None = None,
    options: TrainOptions = TrainOptions(),  # noqa: B008  (frozen)
    *,
    base: BaseInfo,
    pad_token_id: int,
    eval_rows: Sequence[Encoded] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    on_last_good: Callable[[], Any] | None = None,
    interruptible: bool = False,
    identity: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train `region` in place on the response tokens of `rows`, and prove that every other tensor is unchanged.

    Args:
        model: a causal language model of transformers.
        region: a Region, or another `Trainable` such as LoRA adapters.
        rows: encoded training rows, as from `encode_examples`, or from `anchor.task_rows` if tokens of them are held
            to the base or filtered.
        output_dir: folder for checkpoints.
        training: fields of transformers.TrainingArguments, see `arguments.training_arguments`. `resume_from_checkpoint:
            true` takes the last complete checkpoint in output_dir; it must be of the same identity. Without a learning
            rate, `with_learning_rate` sets one. `checkpoint_minutes` saves a checkpoint that often.
        options: loss, anchor, masks, storage and memory, see TrainOptions.
        base: name, fingerprint and dtype of the base, written into checkpoints.
        pad_token_id: token that pads rows of a batch.
        eval_rows: rows for the evaluations that `training` asks for.
        callbacks: callbacks of transformers.Trainer.
        on_last_good: called when the loss is no longer finite while the weights still are.
        interruptible: the first Ctrl-C, SIGTERM or SIGHUP ends training after the current step, with a checkpoint.
        identity: what decides the run's result, which its checkpoints carry; by default that of `run_identity`.

    Returns:
        The run's TrainResult, with losses in nats per token, time in seconds and memory in bytes.

    Raises:
        LossNotFinite: the loss became NaN or infinite, or, as NothingTrained, the gradients of all steps.
        CofituneError: an argument is refused, the checkpoint is of another run, memory ran out, or a tensor outside the
            region changed.
    """
    training = dict(training or {})
    resume = training.pop("resume_from_checkpoint", None)
    if resume:
        resume = broadcast_object(find_checkpoint(resume, output_dir))
    minutes = training.get(CHECKPOINT_MINUTES)
    if model.device.type == "cpu":
        training.setdefault("use_cpu", True)  # otherwise Trainer would move the model to a GPU
    training = with_learning_rate(training, model, full=region.is_full)
    check_precision(training, model)
    arguments = training_arguments(training, output_dir)
    if evaluates(training) and not eval_rows:
        raise CofituneError("Evaluations during training need rows: set data.valid, or leave training.eval_strategy "
                            "out.")
    identity = identity or run_identity(region, training, options, rows, eval_rows, base)
    if resume:
        check_identity(Checkpoint.read(resume), identity)
    require_room_for_training(list(region.parameters(model)), arguments, output_dir)
    interrupt = StopOnInterrupt()
    proof = FrozenProof.of(model, [name for name, _ in region.parameters(model)])
    data, notes = KeyedRows(rows, options.anchor), []
    for sentence in (data.anchor.note if data.anchor else None, _filtered(rows)):
        if sentence is not None:
            _note(notes, sentence)
    evaluated = KeyedRows(eval_rows) if evaluates(training) else None
    able = checkpoint_ability(model)
    if arguments.gradient_checkpointing and not able:
        arguments.gradient_checkpointing = False
        _note(notes, f"Gradient checkpointing is off: {able.why_not}.")
    cache = _prefix_cache(model, region, [data, evaluated], arguments, options.memory, proof, notes)
    cached_rows = sum(key in cache.store for key in data.keys) if cache else 0
    watching = [*callbacks]
    if patience := training.get(PATIENCE):
        watching.append(Patience(patience))
    if not any(isinstance(one, Saves) for one in callbacks):
        watching.append(Saves(60 * minutes if minutes else None))
    if interruptible:
        watching.append(interrupt)
    use_cache = getattr(model.config, "use_cache", None)
    trainer = CoFiTuneTrainer(
        model, arguments, region, data, options, base=base, pad_token_id=pad_token_id, eval_dataset=evaluated,
        prefix_cache=cache, identity=identity, callbacks=watching,
    )
    if (reason := why_not_cut(model, region)) is not None:
        _note(notes, f"The layers below the region are not cut off: {reason}.")
    try:
        return _train(trainer, interrupt, resume, proof, cache, on_last_good, notes, cached_rows)
    finally:
        interrupt.restore()
        if use_cache is not None:
            model.config.use_cache = use_cache  # Trainer switches it off


def check_identity(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another run. Collective.

    Raises:
        CofituneError: one sentence that names the differences.
    """
    changed = broadcast_object(changes(checkpoint.identity, identity))
    if changed:
        raise CofituneError(f"The checkpoint {checkpoint.path} is of another run ({'; '.join(changed)}): restore that, "
                            "or start anew in another output folder.")


def _train(
    trainer: CoFiTuneTrainer, interrupt: StopOnInterrupt, resume: str | None, proof: FrozenProof,
    cache: PrefixCache | None, on_last_good: Callable[[], Any] | None, notes: list[str], cached_rows: int,
) -> TrainResult:
    model, region, figures, arguments = trainer.model, trainer.region, trainer.figures, trainer.args
    try:
        with (PeakMemory() as peak, writing(Path(arguments.output_dir)), tracked(arguments),
              progress("Training", unit="steps") as task):
            trainer.add_callback(shown := ShowSteps(task))
            figures.start()
            trainer.train(resume_from_checkpoint=resume)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = figures.seconds
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(trainer) from error
    except CofituneError as error:
        together = isinstance(error, LossNotFinite) or not is_sharded(model)  # another error may have hit a single rank
        if on_last_good is not None and together and _finite(trainer.trained):
            on_last_good()
        raise
    finally:
        model.eval()
        for _, parameter in trainer.trained:
            parameter.grad = None
        detach_parts(model)
        if cache is not None:
            cache.close()
            if cache.store.failure is not None:
                _note(notes, f"The prefix cache takes no more rows: {cache.store.failure}; training went on without.")
    frozen_tensors, frozen_bytes = proof.check(model)
    steps, rows = trainer.state.global_step, trainer.train_dataset
    if figures.skipped == steps > 0 and not interrupt.stopped:
        raise NothingTrained(steps)
    if figures.skipped:
        _note(notes, f"{figures.skipped} of {steps} steps changed nothing, as their gradients were not finite; look at "
                     "the data, or lower training.learning_rate.")
    return TrainResult(
        region=str(region),
        trained_parameters=sum(parameter.numel() for _, parameter in trainer.trained),
        steps=steps,
        epochs=trainer.state.epoch or 0.0,
        tokens=round(sum(len(row.input_ids) for row in rows.rows[:rows.task_rows]) * (trainer.state.epoch or 0.0)),
        loss=total(figures.loss.sum) / world_size() / max(steps, 1),
        learning_rate=arguments.learning_rate,
        seconds=seconds,
        peak_memory_bytes=peak.bytes,
        peak_memory=peak.measure,
        frozen_tensors=frozen_tensors,
        frozen_bytes=frozen_bytes,
        interrupted=interrupt.stopped,
        cached_rows=cached_rows,
        notes=notes,
        anchor_kl=figures.anchor_kl.value,
        eval_loss=trainer.kept_eval_loss,
        best_step=trainer.state.best_global_step if arguments.load_best_model_at_end else None,
        reference_kl=figures.reference_kl.value,
        signal=interrupt.signal if interrupt.stopped else None,
        skipped_steps=figures.skipped,
        run=trainer.run_name,
        steady_seconds=shown.steady_seconds,
    )


@torch.no_grad()
def _finite(parameters: Sequence[tuple[str, Tensor]]) -> bool:
    return all_ranks(all(bool(local(parameter).isfinite().all()) for _, parameter in parameters))


def _prefix_cache(
    model: nn.Module, region: Trainable, data: Sequence[KeyedRows | None], arguments: TrainingArguments,
    memory: MemorySettings, proof: FrozenProof, notes: list[str],
) -> PrefixCache | None:
    """Open the prefix cache of the layers below the region; None if it is off, with the reason in `notes`."""
    tokens = sum(len(row.input_ids) - 1 for rows in data if rows is not None for row in rows.rows)
    opened, reason = open_prefix(model, region, proof.digests, memory, tokens, arguments)
    if reason is not None:
        _note(notes, f"The prefix cache is off: {reason}.")
    return opened.cache if opened is not None else None


def _filtered(rows: Sequence[Encoded]) -> str | None:
    """Return a sentence about the response tokens that a filter has left; None if there is no filter."""
    learnt = [row.learnt for row in rows if getattr(row, "learnt", None) is not None]
    if not learnt:
        return None
    left, of = sum(int(kept.sum()) for kept in learnt), sum(map(len, learnt))
    none = sum(not bool(kept.any()) for kept in learnt)
    return (f"The token filter leaves {left} of {of} response tokens ({left / of:.0%}); {none} of {len(learnt)} rows "
            "keep none.")


def _note(notes: list[str], sentence: str) -> None:
    notes.append(sentence)
    logging.getLogger("cofitune_fast").warning(sentence)
