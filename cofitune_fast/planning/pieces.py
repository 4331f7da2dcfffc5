"""Memory and work of the parts of a model in a training step, measured on PyTorch's fake tensors.

The parts are all that comes before the layers, each decoder layer, and the final norm with head and loss. Layers of
one kind behave the same, so only one of each kind runs forward and backward under a tracker. Fake tensors have shapes
but no values. So a model of 80 layers costs no more than one of 8. Masks, rotary tables and other arguments of the
layers come from the model's own forward, with stubs in place of its layers.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from ..errors import CofituneError
from ..losses.chunked import chunked_head, response_loss
from ..models.head import Head
from ..regions import resolve_layout
from .follow import Piece, Step, follow
from .quantized_layers import quantized_forward
from .tracker import GroupedProducts, LiveBytes

_NUMBERS = {"layer_idx", "layer_index", "layer_id"}  # attributes that tell a layer's place, not its kind


@dataclass(frozen=True)
class Surroundings:
    """Tensors that the model's forward holds besides those of its layers.

    arguments: (args, kwargs) of each layer, without its input.
    shared: {number: bytes} of the tensors among the arguments. numbers: for each layer the numbers of its tensors.
    states: bytes of the layers' input. shape, dtype: those of it, [rows, length, hidden] in most families.
    embeddings_apart: True if the embeddings' output is another tensor than the first layer's input. It is held until
        the forward has ended.
    """

    arguments: list[tuple[tuple, dict[str, Any]]]
    shared: dict[int, int]
    numbers: list[tuple[int, ...]]
    shape: torch.Size
    dtype: torch.dtype
    embeddings_apart: bool

    @property
    def states(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    def empty(self) -> Tensor:
        """Make a tensor like the layers' input."""
        return torch.empty(self.shape, dtype=self.dtype)


class Pieces:
    """Parts of `model`, each measured once. The parameters are fake tensors with the region's requires_grad flags.

    Raises:
        CofituneError: here and in all methods, if a part does not run on tensors without values, as with a forward that
            depends on them; or if layers run more than once.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        layout = resolve_layout(model)
        if not layout.in_order:
            raise CofituneError(
                f"Model type '{layout.model_type}' runs its layers more than once, so its memory cannot be planned."
            )
        self._model_type = layout.model_type
        self.layers = [layout.decoder_layer(index) for index in range(layout.num_layers)]
        self._mode = detect_fake_mode(next(model.parameters()))
        self._measured: dict[Any, Any] = {}
        self.trains_embedding = any(p.requires_grad for p in model.get_input_embeddings().parameters())
        self.tied = self.trains_embedding and (
            model.get_output_embeddings().weight is model.get_input_embeddings().weight)
        self._kinds = [_kind(layer) for layer in self.layers]
        trains = [any(p.requires_grad for p in layer.parameters()) for layer in self.layers]
        self.first = 0 if self.trains_embedding else trains.index(True)
        self._extras: dict[type, int | None] = {}
        self.head = self._once("head", self._find_forms)

    def surroundings(self, step: Step) -> Surroundings:
        return self._once(("surroundings", step.rows, step.length), lambda: self._surroundings(step))

    def layer(self, index: int, step: Step) -> Piece:
        """Measure decoder layer `index`. Its cost depends on whether it lies below, in or above the region."""
        around = self.surroundings(step)
        kind = (self._kinds[index], index < self.first, self._needs_gradient(index), around.numbers[index])
        return self._once((kind, step), lambda: self._layer(index, around, step))

    def loss(self, step: Step) -> Piece:
        """Measure final norm, head and loss. The input is the last layer's output."""
        return self._once(("loss", step), lambda: self._loss(step))

    def embedding(self, step: Step) -> Piece:
        """Measure the trained embeddings and all that follows before the first layer. Its input counts there."""
        return self._once(("embedding", step), lambda: self._embedding(step))

    def _needs_gradient(self, index: int) -> bool:
        """True if the backward continues below layer `index`."""
        return index > self.first or self.trains_embedding

    def _once(self, key: Any, measure: Callable[[], Any]) -> Any:
        if key not in self._measured:
            try:
                self._measured[key] = measure()
            except CofituneError:
                raise
            except Exception as error:
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                raise CofituneError(
                    f"The memory of a {self._model_type} model cannot be planned, as its forward does not run on "
                    f"tensors without values ({reason})."
                ) from error
        return self._measured[key]

    def _find_forms(self) -> Head | None:
        """Find out by what head the loss takes chunks, and which classes of layers return a tuple."""
        def run(index: int, states: Tensor, arguments: tuple) -> Tensor:
            layer = self.layers[index]
            if type(layer) not in self._extras:
                output = type(layer).forward(layer, states, *arguments[0], **arguments[1])
                self._extras[type(layer)] = len(output) - 1 if isinstance(output, tuple) else None
            return torch.empty_like(states)

        with self._with_stubs(run), torch.no_grad():
            self.model.get_decoder()(**self._batch(Step(1, 2, 1)), use_cache=False)
            return chunked_head(self.model)

    def _fake(self) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(self._mode)
        stack.enter_context(GroupedProducts())
        return stack

    @contextmanager
    def _with_stubs(self, stub: Callable[[int, Tensor, tuple], Tensor]) -> Iterator[None]:
        """Context in which layer i returns stub(i, its input, its other arguments), on fake tensors in training."""
        for index, layer in enumerate(self.layers):
            layer.forward = partial(self._stand_in, index, stub)
        self.model.train()
        try:
            with self._fake():
                yield
        finally:
            self.model.eval()
            for layer in self.layers:
                del layer.forward

    def _stand_in(self, index: int, stub: Callable[[int, Tensor, tuple], Tensor], *args: Any, **kwargs: Any) -> Any:
        states, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), args)
        output = stub(index, states, (args, kwargs))
        extras = self._extras[type(self.layers[index])]
        return output if extras is None else (output, *[None] * extras)

    def _batch(self, step: Step) -> dict[str, Tensor]:
        """Make a batch with a mask, as every padded batch has one. Fake tensors cannot show that it is not needed."""
        ids = torch.zeros(step.rows, step.length, dtype=torch.long)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _surroundings(self, step: Step) -> Surroundings:
        calls: list[tuple[int, torch.Size, torch.dtype, tuple]] = []

        def stub(index: int, states: Tensor, arguments: tuple) -> Tensor:
            calls.append((live.live, states.shape, states.dtype, _copied(arguments)))
            return torch.empty_like(states)

        with self._with_stubs(stub), torch.no_grad():
            batch = self._batch(step)
            with LiveBytes() as live:
                self.model.get_decoder()(**batch, use_cache=False)
        arguments = [call[-1] for call in calls]
        if any(isinstance(leaf, MutableMapping) for leaf in tree_leaves(arguments)):
            arguments = self._filled(step)
        shared: dict[int, int] = {}
        storages: dict[int, int] = {}  # the arguments keep the storages alive, so their ids are unique
        numbers = []
        for given in arguments:
            tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
            for storage in map(Tensor.untyped_storage, tensors):
                number = storages.setdefault(id(storage), len(storages))
                shared[number] = storage.nbytes()
            numbers.append(tuple(storages[id(tensor.untyped_storage())] for tensor in tensors))
        # Equal live bytes at the second layer mean that the first layer's input was freed in between. So it is another
        # tensor than the embeddings' output, which is still held.
        apart = len(calls) > 1 and calls[1][0] == calls[0][0]
        _, shape, dtype, _ = calls[0]
        return Surroundings(arguments, shared, numbers, shape, dtype, apart)

    def _filled(self, step: Step) -> list[tuple]:
        """Arguments of the layers where lower layers have put what higher ones read, such as keys and values."""
        found: list[tuple] = []

        def run(index: int, states: Tensor, arguments: tuple) -> Tensor:
            found.append(_copied(arguments))
            layer = self.layers[index]
            type(layer).forward(layer, states, *arguments[0], **arguments[1])
            return torch.empty_like(states)

        with self._with_stubs(run), torch.no_grad():
            self.model.get_decoder()(**self._batch(step), use_cache=False)
        return found

    def _layer(self, index: int, around: Surroundings, step: Step) -> Piece:
        layer, below = self.layers[index], index < self.first
        is_tuple = self._extras[type(layer)] is not None

        def run(entered: list[Tensor], given: list[tuple], live: LiveBytes) -> Tensor:
            args, kwargs = given[0]
            if step.checkpointing and not below:
                output = checkpoint(partial(layer, **kwargs), entered[0], *args, use_reentrant=False)
            else:
                output = layer(entered[0], *args, **kwargs)  # the model's loop also holds the input
            return output[0] if is_tuple else output

        with self._fake(), quantized_forward(layer.modules(), step.quantize):
            given = [_copied(around.arguments[index], torch.clone)]
            copies = [weakref.ref(leaf.untyped_storage()) for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
            shared = list(zip(around.numbers[index], copies, strict=True))
            return follow(layer, run, given, around.empty(), step, shared,
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
            return follow(self.model, run, [self._batch(step)], self.surroundings(step).empty(), step)

    def _embedding(self, step: Step) -> Piece:
        def run(_: list[Tensor], given: list[dict[str, Tensor]], live: LiveBytes) -> tuple[Tensor, ...]:
            entered: dict[int, Tensor] = {}

            def stub(index: int, states: Tensor, arguments: tuple) -> Tensor:
                others = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
                live.exclude(others)
                for tensor in ([states] if index == 0 else []) + others:
                    if tensor.requires_grad:
                        entered[id(tensor)] = tensor
                return torch.empty_like(states, requires_grad=False)

            with self._with_stubs(stub):
                self.model.get_decoder()(**given[0], use_cache=False)
            return tuple(entered.values())

        with self._fake():
            return follow(self.model, run, [self._batch(step)], self.surroundings(step).empty(), step, grad_input=False)


def _copied(arguments: Any, tensor: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
    """Copy of a layer's arguments, in which mappings that layers write to are their own."""
    def one(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return tensor(leaf)
        return copy.copy(leaf) if isinstance(leaf, MutableMapping) else leaf

    return tree_map(one, arguments)


def _kind(layer: nn.Module) -> tuple:
    """Key of what a layer costs: its classes and their settings, its parameters, and which are trained."""
    modules = tuple(
        (name, type(module).__name__, tuple(sorted(
            (key, value) for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str) and key not in _NUMBERS)))
        for name, module in layer.named_modules()
    )
    return modules, tuple((name, p.shape, p.requires_grad) for name, p in layer.named_parameters())
