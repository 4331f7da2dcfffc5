"""Callback for transformers.Trainer and its subclasses: a region, the anchor, and the proof that the rest is as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import ref

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..anchor import AnchorSettings, open_anchor
from ..errors import CofituneError
from ..memory.abilities import frozen_prefix
from ..memory.prefix import FrozenPrefix
from ..regions import BaseInfo, FrozenProof, Region, save_delta, whole_name
from ..regions.frozen import FrozenSummary
from ..training.mean import Mean
from .protection import Protect, protect
from .reference import shared_with_references
from .wrapped import unwrapped


class CoFiTuneCallback(TrainerCallback):
    """Trains one region in any transformers.Trainer, TRL's among them, and holds the model to its base.

    The Trainer keeps its own loss, data, optimizer, clipping and evaluation. At its construction the callback freezes
    all but the region. During training the frozen layers below the region keep no activations. Before the micro-batches
    of a step it puts the gradient of `protect` into the parameters' `grad`. The Trainer adds its own to it, so that it
    clips and reports the norm of the gradient of its loss plus the protection. At the end the callback proves that no
    frozen tensor has changed. A training that ends with an error leaves checkpointing off below the region. A callback
    belongs to one model.

    Args:
        region: the part to train, such as "ffn@40%-75%".
        protect: the loss of `protect`; one call is made per optimizer step, whatever the number of micro-batches.
            AnchorSettings: the callback makes it from the Trainer's model and tokenizer (`processing_class`), also
            where the Trainer loads the model itself. None: no anchor.
        base: name, fingerprint and dtype of the base, for deltas; by default those of the model at the Trainer's
            construction, whose bytes are all read for it.
        prove: hash the frozen tensors at the Trainer's construction, on resuming and after training, and compare.

    Attributes:
        frozen: number of tensors that the last training has left unchanged, and their bytes; None before its end.

    Raises:
        CofituneError: at the Trainer's construction or at the beginning of training, for arguments that do not go
            together with it; at the end, if a frozen tensor has changed.
    """

    def __init__(self, region: Region | str, protect: Protect | AnchorSettings | None = None, *,
                 base: BaseInfo | None = None, prove: bool = True):
        self.region, self.base, self._prove = Region.parse(region), base, prove
        self.protect = None if isinstance(protect, AnchorSettings) else protect
        self._settings = protect if isinstance(protect, AnchorSettings) else None
        self._known_base = base is not None
        self.frozen: FrozenSummary | None = None
        self._model: nn.Module | None = None
        self._prefix: FrozenPrefix | None = None
        self._proof: FrozenProof | None = None
        self._logged = Mean()
        self._owner: ref[nn.Module] | None = None
        self._protected_step: int | None = None  # whose protection is in `grad`

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module | None = None,
        processing_class: Any = None, **kwargs: Any,
    ) -> None:
        """Freeze all but the region, and open the anchor."""
        model = unwrapped(model)
        if self._owner is not None and self._owner() is not model:
            raise CofituneError("The callback has been given to the Trainer of another model already, whose base and "
                                "anchor it has; make a callback for each model.")
        self._owner = ref(model)
        _refuse(args, model)
        _refuse_shared(self.region, model)
        if not self._known_base:
            self.base = BaseInfo.of(model)
        if self._settings is not None:
            self.protect = self._opened(model, processing_class, self._settings)
        if not self._applied(model):  # an optimizer made before may hold the region's parameters as they are
            self.region.apply(model)
        if self._prove:
            self._proof = FrozenProof.of(model, [name for name, _ in self.region.parameters(model)])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Take the cost of checkpointing off the frozen layers; on resuming, check what the checkpoint brought."""
        model = unwrapped(model)
        if not self._applied(model):
            raise CofituneError(f"The model does not train the region {self.region} alone when training begins; give "
                                "the Trainer the model itself (no model_init), and leave requires_grad as it is.")
        if self._proof is not None and state.global_step > 0:
            self._check_resumed(model)
        if self._prefix is not None:
            self._prefix.__exit__(None, None, None)  # of a training that ended with an error
        self._prefix = frozen_prefix(model, self.region)
        self._model, self.frozen, self._logged, self._protected_step = model, None, Mean(), None
        self._cut_prefix()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Put the gradient of the protection into `grad`, once for a step.

        Where the data end inside a step, Trainer begins that step anew and keeps the gradients.
        """
        self._cut_prefix()
        weight = 0.0 if self.protect is None else self.protect.anchor.settings.weight
        if weight == 0 or state.global_step == self._protected_step:
            return
        self._protected_step = state.global_step
        self._model.train()
        self.protect.calls = state.global_step  # so that a resumed training goes on with the same rows
        from accelerate.state import GradientState

        loss = self.protect(self._model)
        # transformers 5.5 lets accelerate divide the loss of a micro-batch by their number once more; then so do we.
        (loss / GradientState().num_steps).backward()
        self._logged.add(loss.detach() / weight)

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        """Take the cost of checkpointing off the frozen layers again, after each micro-batch."""
        self._cut_prefix()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:
        """Add `anchor_kl`, the mean since the last log as `loss` is, in nats per anchor token."""
        if logs is None or "loss" not in logs or self._logged.value is None:
            return
        logs["anchor_kl"] = state.log_history[-1]["anchor_kl"] = self._logged.value
        self._logged = Mean()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Prove that the frozen tensors are as they were."""
        if self._prefix is not None:
            self._prefix.__exit__(None, None, None)
        if self._proof is not None:
            self.frozen = self._proof.check(self._model)

    def save_delta(self, path: str | Path) -> Path:
        """Write the region's tensors as they are now, bound to the base; see `save_delta` of the package.

        Raises:
            CofituneError: no Trainer has trained with this callback yet, or `path` holds something else.
        """
        if self._model is None:
            raise CofituneError("There is nothing to save yet, because no Trainer has trained with this callback; call "
                                "trainer.train() first.")
        return save_delta(self._model, self.region, path, base=self.base)

    def _cut_prefix(self) -> None:
        """Take the cost of checkpointing off the frozen layers.

        TRL's DPOTrainer switches checkpointing off for each forward of its reference, and then on again for all layers.
        """
        # Non-reentrant checkpointing needs no gradient of the embeddings; it would go back through all frozen layers.
        if hasattr(self._model, "disable_input_require_grads"):
            self._model.disable_input_require_grads()
        if self._prefix is not None:
            self._prefix.stop_checkpointing()

    def _check_resumed(self, model: nn.Module) -> None:
        try:
            self._proof.check(model)
        except CofituneError:
            raise CofituneError("The checkpoint has brought other frozen tensors than those of the model that the "
                                "Trainer was made with, so it is of another base or another region; resume from a "
                                "checkpoint of this run, and load the model anew.") from None

    def _opened(self, model: nn.Module, tokenizer: Any, settings: AnchorSettings) -> Protect:
        if tokenizer is None:
            raise CofituneError("The callback needs the tokenizer to write the anchor's texts with; give the Trainer "
                                "processing_class=tokenizer.")
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor has one
        return protect(model, anchor=open_anchor(model, tokenizer, settings, self.base.fingerprint))

    def _applied(self, model: nn.Module) -> bool:
        region = {id(parameter) for _, parameter in self.region.parameters(model)}
        return region == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def _refuse(args: TrainingArguments, model: nn.Module) -> None:
    """Refuse arguments that the callback does not go together with.

    Raises:
        CofituneError: one sentence that names the argument and what to do.
    """
    checkpointing = getattr(args, "activation_checkpointing_kwargs", None) or getattr(
        args, "gradient_checkpointing_kwargs", None) or {}
    reasons = {
        "args.fp16 is true, and gradients scaled for float16 are not taken": (args.fp16, "set bf16 instead"),
        "args.deepspeed is set, and DeepSpeed has its own backward": (args.deepspeed, "leave it out"),
        "args.fsdp is set, and the callback works in one process": (args.fsdp, "leave it out"),
        f"{args.world_size} processes train together, and the callback works in one": (
            args.world_size > 1, "start one, or take CoFiTuneTrainer, which torchrun can start several of"),
        f"{args.n_gpu} GPUs would get a copy of the model at every step": (
            args.n_gpu > 1, "let one be seen (CUDA_VISIBLE_DEVICES=0)"),
        "use_reentrant is true, and such checkpointing goes back through all frozen layers": (
            checkpointing.get("use_reentrant"), "leave it out of the checkpointing's keywords"),
        "args.sync_ref_model is true, and the copying would damage the frozen tensors that the reference shares": (
            getattr(args, "sync_ref_model", False) and shared_with_references(model),
            "leave it out, or give a reference that is loaded as a model of its own"),
    }
    for reason, (present, remedy) in reasons.items():
        if present:
            raise CofituneError(f"{reason}: {remedy}.")


def _refuse_shared(region: Region, model: nn.Module) -> None:
    shared = shared_with_references(model) & {whole_name(name) for name, _ in region.parameters(model)}
    if shared:
        raise CofituneError(f"The region {region} holds {min(shared)}, which a reference of `reference_model` shares "
                            "and which would change with it; make the reference for the region that is trained.")
