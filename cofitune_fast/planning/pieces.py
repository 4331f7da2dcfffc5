"""Memory and work of the parts of a model in a training step, measured on PyTorch's fake tensors.

The parts are the embeddings, each decoder layer, and the final norm with head and loss. Layers of one kind behave the
same, so only one of each kind runs forward and backward under a tracker. Fake tensors have shapes but no values. So a
model of 80 layers costs no more than one of 8. Masks, rotary tables and other arguments of the layers come from the
model's own forward, with stubs in place of its layers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

from ..losses.chunked import chunked_head, response_loss
from ..regions import resolve_layout
from .follow import Piece, Step, follow
from .quantized_layers import quantized_forward
from .tracker import LiveBytes


@dataclass(frozen=True)
class Surroundings:
    """Tensors that the model's forward holds besides those of its layers.

    arguments: (args, kwargs) of each layer, without its input.
    shared: {number: bytes} of the tensors among the arguments. numbers: for each layer the numbers of its tensors.
    states: bytes of one [rows, length, hidden].
    embeddings_apart: True if the embeddings' output is another tensor than the first layer's input. It is held until
        the forward has ended.
    """

    arguments: list[tuple[tuple, dict[str, Any]]]
    shared: dict[int, int]
    numbers: list[tuple[int, ...]]
    states: int
    embeddings_apart: bool


class Pieces:
    """Parts of `model`, each measured once. The parameters are fake tensors with the region's requires_grad flags."""

    def __init__(self, model: nn.Module):
        self.model = model
        layout = resolve_layout(model)
        self.layers = [layout.decoder_layer(index) for index in range(layout.num_layers)]
        self._mode = detect_fake_mode(next(model.parameters()))
        self._measured: dict[Any, Any] = {}
        self._hidden, self._dtype = layout.hidden_size, model.get_input_embeddings().weight.dtype
        self.trains_embedding = any(p.requires_grad for p in model.get_input_embeddings().parameters())
        self.tied = self.trains_embedding and (
            model.get_output_embeddings().weight is model.get_input_embeddings().weight)
        self._flags = [tuple(p.requires_grad for p in layer.parameters()) for layer in self.layers]
        self.first = 0 if self.trains_embedding else next(i for i, flags in enumerate(self._flags) if any(flags))
        with self._with_stubs(lambda index, states, arguments: torch.empty_like(states)):
            self.head = chunked_head(model)

    def surroundings(self, step: Step) -> Surroundings:
        return self._once(("surroundings", step.rows, step.length), lambda: self._surroundings(step))

    def layer(self, index: int, step: Step) -> Piece:
        """Measure decoder layer `index`. Its cost depends on whether it lies below, in or above the region."""
        around = self.surroundings(step)
        kind = (self._flags[index], index < self.first, self._needs_gradient(index), around.numbers[index])
        return self._once((kind, step), lambda: self._layer(index, around, step))

    def loss(self, step: Step) -> Piece:
        """Measure final norm, head and loss. The input is the last layer's output."""
        return self._once(("loss", step), lambda: self._loss(step))

    def embedding(self, step: Step) -> Piece:
        """Measure the trained input embeddings. Their output is the first layer's input and counts there."""
        return self._once(("embedding", step), lambda: self._embedding(step))

    def _needs_gradient(self, index: int) -> bool:
        """True if the backward continues below layer `index`."""
        return index > self.first or self.trains_embedding

    def _once(self, key: Any, measure: Callable[[], Any]) -> Any:
        if key not in self._measured:
            self._measured[key] = measure()
        return self._measured[key]

    @contextmanager
    def _with_stubs(self, stub: Callable[[int, Tensor, tuple], Tensor]) -> Iterator[None]:
        """Context in which layer i returns stub(i, its input, its other arguments), on fake tensors in training."""
        for index, layer in enumerate(self.layers):
            layer.forward = lambda states, *args, index=index, **kwargs: stub(index, states, (args, kwargs))
        self.model.train()
        try:
            with self._mode:
                yield
        finally:
            self.model.eval()
            for layer in self.layers:
                del layer.forward

    def _batch(self, step: Step) -> dict[str, Tensor]:
        """Make a batch with a mask, as every padded batch has one. Fake tensors cannot show that it is not needed."""
        ids = torch.zeros(step.rows, step.length, dtype=torch.long)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _states(self, step: Step) -> Tensor:
        return torch.empty(step.rows, step.length, self._hidden, dtype=self._dtype)

    def _surroundings(self, step: Step) -> Surroundings:
        calls: list[tuple[int, tuple]] = []

        def stub(index: int, states: Tensor, arguments: tuple) -> Tensor:
            calls.append((live.live, arguments))
            return torch.empty_like(states)

        with self._with_stubs(stub), torch.no_grad():
            batch, states = self._batch(step), self._states(step).nbytes
            with LiveBytes() as live:
                self.model.get_decoder()(**batch, use_cache=False)
        shared: dict[int, int] = {}
        storages: dict[int, int] = {}  # the arguments keep the storages alive, so their ids are unique
        numbers = []
        for _, arguments in calls:
            tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
            for storage in map(Tensor.untyped_storage, tensors):
                number = storages.setdefault(id(storage), len(storages))
                shared[number] = storage.nbytes()
            numbers.append(tuple(storages[id(tensor.untyped_storage())] for tensor in tensors))
        # Equal live bytes at the second layer mean that the first layer's input was freed in between. So it is another
        # tensor than the embeddings' output, which is still held.
        apart = len(calls) > 1 and calls[1][0] == calls[0][0]
        return Surroundings([arguments for _, arguments in calls], shared, numbers, states, apart)

    def _layer(self, index: int, around: Surroundings, step: Step) -> Piece:
        layer, below = self.layers[index], index < self.first

        def run(entered: list[Tensor], given: list[tuple], live: LiveBytes) -> Tensor:
            args, kwargs = given[0]
            if step.checkpointing and not below:
                return checkpoint(partial(layer, **kwargs), entered[0], *args, use_reentrant=False)
            return layer(entered[0], *args, **kwargs)  # the model's loop also holds the input

        with self._mode, quantized_forward(layer.modules(), step.quantize):
            given = [tree_map_only(Tensor, torch.clone, around.arguments[index])]
            copies = [weakref.ref(leaf.untyped_storage()) for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
            shared = list(zip(around.numbers[index], copies, strict=True))
            return follow(layer, run, given, self._states(step), step, shared,
                          grad_input=self._needs_gradient(index), graph=not below)

    def _loss(self, step: Step) -> Piece:
        entered: list[Tensor] = []
        counted: list[LiveBytes] = []
        # Tensors that `surroundings` counts, and the input that layer 0 keeps, must not be counted a second time.
        kept = not self.surroundings(step).embeddings_apart and self.layer(0, step).keeps_input

        def stub(index: int, states: Tensor, arguments: tuple) -> Tensor:
            known = tree_leaves(arguments) + [states] * (index == 0 and kept)
            counted[0].exclude(leaf for leaf in known if isinstance(leaf, Tensor))
            if index < len(self.layers) - 1:
                return torch.empty_like(states)
            del states
            counted[0].restart()
            return entered.pop()

        def run(states: list[Tensor], given: list[dict[str, Tensor]], live: LiveBytes) -> Tensor:
            entered.append(states.pop())
            counted.append(live)
            places = torch.zeros(step.responses, dtype=torch.long)
            return response_loss(self.model, given[0], places, places, 1.0, head=self.head)

        with self._with_stubs(stub):
            return follow(self.model, run, [self._batch(step)], self._states(step), step)

    def _embedding(self, step: Step) -> Piece:
        embedding = self.model.get_input_embeddings()
        with self._mode:
            return follow(embedding, lambda _, given, live: embedding(given[0]), [self._batch(step)["input_ids"]],
                          self._states(step), step, grad_input=False)
