"""Train one region of a model and prove that nothing else moved."""

from __future__ import annotations

import difflib
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from ..anchor import Anchor
from ..data import Encoded
from ..errors import CofituneError
from ..memory import PeakMemory
from ..memory.cached_prefix import open_prefix
from ..memory.prefix_cache import PrefixCache
from ..memory.settings import MemorySettings
from ..models.sharded import all_ranks, broadcast_object, is_sharded, world_size
from ..optim import MaskedAdamW, Pull
from ..optim.sharding import local
from ..planning.out_of_memory import advice, is_out_of_memory
from ..planning.planner import Settings
from ..regions import BaseInfo, FrozenProof, Region
from .batching import KeyedRows
from .callbacks import StopOnInterrupt
from .checkpoint import OPTIMIZER_FILE, STATE_FILE
from .rates import FULL_RATE, with_learning_rate
from .trainer import CoFiTuneTrainer, LossNotFinite

# Trainer's own defaults except where they do not suit a command-line run or a region.
DEFAULTS: dict[str, Any] = {
    "learning_rate": FULL_RATE,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "adam_beta2": 0.95,
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": 10,
    "disable_tqdm": True,
}


@dataclass
class TrainResult:
    """What a training run did and cost. `peak_memory` says of what `peak_memory_bytes` is the peak.

    tokens: of the task's rows. loss: mean over the steps, the anchor's part in it; anchor_kl: mean KL to the base per
    anchor token, in nats. cached_rows: rows whose frozen prefix was in the cache before the run. notes: what it could
    not do, in sentences.
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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def training_arguments(values: Mapping[str, Any], output_dir: str | Path) -> TrainingArguments:
    """TrainingArguments from plain values over our defaults; a wrong one gets one sentence that names it."""
    known = {field.name for field in fields(TrainingArguments) if field.init}
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"did you mean training.{nearest[0]}?" if nearest else "see transformers.TrainingArguments."
            raise CofituneError(f"Unknown key training.{key}; {hint}")
    values = {
        **DEFAULTS, "output_dir": str(output_dir), "dataloader_pin_memory": torch.cuda.is_available(), **values,
    }
    rate = values["learning_rate"]
    if not isinstance(rate, (int, float)) or rate <= 0:
        raise CofituneError(f"training.learning_rate is {rate!r}; it must be a number above 0.")
    epochs = values["num_train_epochs"]
    if not isinstance(epochs, (int, float)) or epochs <= 0:
        raise CofituneError(f"training.num_train_epochs is {epochs!r}; it must be a number above 0.")
    try:
        return TrainingArguments(**values)
    except ImportError as error:
        raise CofituneError(f"Training needs accelerate: pip install 'cofitune-fast[train]' ({error}).") from None
    except (TypeError, ValueError) as error:
        raise CofituneError(f"The training settings are not accepted by transformers: {error}") from None


def planned_epochs(training: Mapping[str, Any], rows: int) -> float:
    """How often a training would see each of `rows` rows; training: arguments as for `train_region`."""
    arguments = training_arguments(training, "planned")
    if arguments.max_steps <= 0:
        return float(arguments.num_train_epochs)
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * world_size()
    return arguments.max_steps * batch / rows


def train_region(
    model: nn.Module,
    region: Region,
    rows: Sequence[Encoded],
    output_dir: str | Path,
    training: Mapping[str, Any] | None = None,
    *,
    base: BaseInfo,
    pad_token_id: int,
    loss: str = "ce",
    anchor: Anchor | None = None,
    masks: Mapping[str, Tensor] | None = None,
    mask_mode: str = "update",
    pull: Pull | None = None,
    storage: str = "auto",
    memory: MemorySettings = MemorySettings(),  # noqa: B008  (frozen)
    callbacks: Sequence[TrainerCallback] = (),
    on_last_good: Callable[[], Any] | None = None,
    interruptible: bool = False,
    optimizer_kind: Callable[..., MaskedAdamW] | None = None,
) -> TrainResult:
    """Train `region` in place on the response tokens of `rows`; every other tensor is proven unchanged afterwards.

    loss: of a response token, see `memory.objectives.CrossEntropy`. anchor: texts of the base, some of which come with
    every batch; their KL to the base is added to the loss. pull: toward the initial weights, see `optim.Pull`.
    training: arguments of transformers.TrainingArguments, passed through (`resume_from_checkpoint: true` takes the
    last complete checkpoint in output_dir); without a learning rate see `with_learning_rate`. on_last_good: called when
    the loss stops being finite while the weights still are. memory: see MemorySettings. interruptible: the first Ctrl-C
    then ends training after its step, with a checkpoint. optimizer_kind: in place of MaskedAdamW. Raises LossNotFinite
    and CofituneError.
    """
    training = dict(training or {})
    resume = training.pop("resume_from_checkpoint", None)
    if resume is True:
        resume = broadcast_object(last_complete_checkpoint(output_dir))
    if model.device.type == "cpu":
        training.setdefault("use_cpu", True)  # Trainer would move the model to a GPU that is there
    training = with_learning_rate(training, model, full=getattr(region, "is_full", False))
    arguments = training_arguments(training, output_dir)
    interrupt = StopOnInterrupt()
    proof = FrozenProof.of(model, [name for name, _ in region.parameters(model)])
    data, notes = KeyedRows(rows, anchor), []
    cache = _prefix_cache(model, region, data, arguments, memory, proof, notes)
    cached_rows = sum(key in cache.store for key in data.keys) if cache else 0
    trainer = CoFiTuneTrainer(
        model, arguments, region, data, base=base, pad_token_id=pad_token_id, loss=loss, masks=masks,
        mask_mode=mask_mode, pull=pull, storage=storage, memory=memory, prefix_cache=cache,
        optimizer_kind=optimizer_kind,
        callbacks=[*callbacks, *([interrupt] if interruptible else [])],
    )
    try:
        with PeakMemory() as peak:
            start = time.perf_counter()
            output = trainer.train(resume_from_checkpoint=resume)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if isinstance(region, Region):
            remedy = advice(model, region, _plan_settings(arguments, data, memory, trainer))
        else:
            remedy = "Take a smaller training.per_device_train_batch_size with more gradient_accumulation_steps."
        raise CofituneError(f"Out of memory at step {trainer.state.global_step + 1}. {remedy}") from error
    except CofituneError as error:
        together = isinstance(error, LossNotFinite) or not is_sharded(model)  # another error may be one rank's alone
        if on_last_good is not None and together and _finite(trainer.trained):
            on_last_good()
        raise
    finally:
        interrupt.restore()
        model.eval()
        for _, parameter in trainer.trained:
            parameter.grad = None
        if cache is not None:
            cache.close()
            if cache.store.failure is not None:
                _note(notes, f"The prefix cache takes no more rows: {cache.store.failure}; training went on without.")
    frozen_tensors, frozen_bytes = proof.check(model)
    return TrainResult(
        region=str(region),
        trained_parameters=sum(parameter.numel() for _, parameter in trainer.trained),
        steps=trainer.state.global_step,
        epochs=trainer.state.epoch or 0.0,
        tokens=round(sum(len(row.input_ids) for row in rows) * (trainer.state.epoch or 0.0)),
        loss=output.training_loss,
        learning_rate=arguments.learning_rate,
        seconds=seconds,
        peak_memory_bytes=peak.bytes,
        peak_memory=peak.measure,
        frozen_tensors=frozen_tensors,
        frozen_bytes=frozen_bytes,
        interrupted=interrupt.interrupted,
        cached_rows=cached_rows,
        notes=notes,
        anchor_kl=trainer.anchor_kl.value,
    )


@torch.no_grad()
def _finite(parameters: Sequence[tuple[str, Tensor]]) -> bool:
    return all_ranks(all(bool(local(parameter).isfinite().all()) for _, parameter in parameters))


def _plan_settings(
    arguments: TrainingArguments, data: KeyedRows, memory: MemorySettings, trainer: CoFiTuneTrainer
) -> Settings:
    """The settings of a run as the planner knows them, of its longest rows."""
    steps = arguments.gradient_accumulation_steps
    storages = {group["storage"] for group in trainer.optimizer.param_groups} if trainer.optimizer else {"auto"}
    storage = storages.pop()
    return Settings(
        batch_size=arguments.per_device_train_batch_size * steps, accumulation=steps,
        anchor_rows=data.anchor.settings.rows if data.anchor else 0,
        length=max(len(row.input_ids) for row in data.rows),
        response_length=max(len(row.input_ids) - row.response_start for row in data.rows),
        storage=storage if storage != "auto" else "fp32" if trainer.model.dtype == torch.float32 else "bf16_sr",
        masked=bool(trainer.masks), gradient_checkpointing=arguments.gradient_checkpointing,
        gradient_release=memory.gradient_release, optimizer_states=memory.optimizer_states,
        prefix="computed" if trainer.prefix_cache is None else "cached",
        prefix_weights=memory.prefix_weights if trainer.prefix_cache is not None else "device",
    )


def _prefix_cache(
    model: nn.Module, region: Region, data: KeyedRows, arguments: TrainingArguments, memory: MemorySettings,
    proof: FrozenProof, notes: list[str],
) -> PrefixCache | None:
    """The open cache of the layers below the region, or None where there is nothing to cache or reason not to."""
    tokens = sum(len(row.input_ids) - 1 for row in data.rows)
    opened, reason = open_prefix(model, region, proof.digests, memory, tokens, arguments)
    if reason is not None:
        _note(notes, f"The prefix cache is off: {reason}.")
    return opened.cache if opened is not None else None


def _note(notes: list[str], sentence: str) -> None:
    notes.append(sentence)
    logging.getLogger("cofitune_fast").warning(sentence)


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint that was written to its end (Trainer's state is its last file), or None."""
    needed = ("delta.safetensors", "cofitune.json", OPTIMIZER_FILE, STATE_FILE, "trainer_state.json")
    found = [
        path for path in Path(folder).glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-\d+", path.name) and all((path / name).is_file() for name in needed)
    ]
    return str(max(found, key=lambda path: int(path.name.split("-")[1]))) if found else None
