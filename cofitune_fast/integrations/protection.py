"""The anchor for any training loop: texts of the base, and a loss that holds a model to the base on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..anchor import Anchor, AnchorSettings, open_anchor
from ..data import pad_rows, padded_places
from ..data.formats import Message
from ..errors import CofituneError
from ..losses import response_losses
from ..models.head import Head
from ..models.mode import evaluation_mode
from ..models.sharded import is_sharded, rank, world_size
from ..training.anchor_term import AnchorOrder, anchor_term
from ..training.batching import of_base
from ..training.mean import Mean
from .wrapped import unwrapped


def protect(
    model: nn.Module, tokenizer: Any = None, settings: AnchorSettings | None = None, *, anchor: Anchor | None = None,
    task_prompts: Sequence[list[Message]] | None = None, folder: str | Path | None = None,
) -> Protect:
    """Return a loss that holds `model` to its present behaviour, for any training loop.

    Call it before training changes the model. Texts that the model writes and its distributions on them are read from
    the cache folder, or made there. They are of the model as it is now: of a model that has been trained already they
    say what it does, not what its base did.

        protected = protect(model, tokenizer)
        loss = model(**batch).loss + protected()

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer; not needed with `anchor`.
        settings: the texts, the weight and the rows of a call; by default AnchorSettings().
        anchor: an anchor that is open already, see `open_anchor`, in place of tokenizer and settings.
        task_prompts: prompts of the training rows, for `AnchorSettings.prompts` "task".
        folder: folder of the file with texts and distributions, by default `anchor` in the cache folder.

    Raises:
        CofituneError: the tokenizer is missing, or the anchor cannot be made, see `open_anchor`.
    """
    bare = unwrapped(model)
    if anchor is None:
        if tokenizer is None:
            raise CofituneError("protect needs the model's tokenizer to write the texts with; give it, or an open "
                                "anchor.")
        anchor = open_anchor(bare, tokenizer, settings or AnchorSettings(), task_prompts=task_prompts, folder=folder)
    elif settings is not None:
        raise CofituneError("protect was given an anchor and settings, and the anchor has its own; leave one of them "
                            "out.")
    return Protect(bare, anchor)


class Protect:
    """Loss that holds a model to an anchor; `protect` makes it, and a call returns the value of the next rows.

    Attributes:
        anchor: texts and distributions.
        calls: number of calls so far, which says the rows of the next one.
    """

    def __init__(self, model: nn.Module, anchor: Anchor):
        self.anchor, self.calls = anchor, 0
        self._model, self._mean = model, Mean()
        self._order = AnchorOrder(range(len(anchor.rows)), anchor.settings.rows, anchor.settings.seed)
        self._heads: WeakKeyDictionary[nn.Module, Head | None] = WeakKeyDictionary()

    def __call__(self, model: nn.Module | None = None) -> Tensor:
        """Return weight * mean KL(base || model) per token of the next `settings.rows` texts: float32, 0-d, in nats.

        It is differentiable once. The formula is that of CoFiTuneTrainer's loss, with the texts in a pass of their own.
        Only the places that predict the texts' responses reach the head. A compiled model runs as it was before it was
        compiled. Of a model sharded by FSDP2 all ranks call it, each for rows of its own.

        Args:
            model: the model as it is trained, such as prepared by accelerate; by default the one that `protect` took.

        Raises:
            CofituneError: the model is wrapped in a way that is not taken, such as DistributedDataParallel.
        """
        model = self._model if model is None else unwrapped(model)
        settings = self.anchor.settings
        device = model.get_input_embeddings().weight.device
        if settings.weight == 0:
            return torch.zeros((), device=device)
        batch = self._batch(self._order.batch(self.calls * world_size() + rank()), device)
        call = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with _as_written(model):
            (loss,) = response_losses(model, call, [anchor_term(batch, settings)], head=self._head(model))
        self._mean.add(loss.detach() / settings.weight)
        self.calls += 1
        return loss

    @property
    def kl(self) -> float | None:
        """Mean KL per anchor token over all calls so far, in nats, or what `settings.loss` names; None before one."""
        return self._mean.value

    def state_dict(self) -> dict[str, Any]:
        """Return which rows come next and the mean so far, as JSON values."""
        return {"calls": self.calls, "mean": self._mean.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        self.calls = int(state["calls"])
        self._mean.load(state["mean"])

    def _batch(self, indices: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        rows = [self.anchor.rows[index] for index in indices]
        batch = pad_rows(rows, pad_token_id=0)  # padding is masked, so that any token will do
        places = [torch.arange(path.start, path.stop) for path in padded_places(rows, batch["input_ids"].shape[1])]
        batch |= of_base("anchor", list(zip(rows, places, strict=True)))
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def _head(self, model: nn.Module) -> Head | None:
        """Return the head if the loss can be computed in chunks: it is frozen, whole on this rank, and known."""
        # FSDP2 may take the head's weight apart before the loss needs it.
        if is_sharded(model) or any(one.requires_grad for one in model.get_output_embeddings().parameters()):
            return None
        if model not in self._heads:
            with evaluation_mode(model):
                self._heads[model] = Head.of(model)
        return self._heads[model]


@contextmanager
def _as_written(model: nn.Module) -> Iterator[None]:
    """Context in which a model that `model.compile()` has compiled runs as it was before.

    The head's hook is another one at each call, which a compiled forward would not heed or be compiled anew for.
    """
    compiled = getattr(model, "_compiled_call_impl", None)
    if compiled is None:
        yield
        return
    model._compiled_call_impl = None
    try:
        yield
    finally:
        model._compiled_call_impl = compiled
