"""Predict the memory of a training run from a model's configuration alone.

The planner goes through the phases of a step, and adds up the memory of the parts of the model in each (pieces.py):

forward    for each layer: the activations saved by the layers before it, and the temporary memory of the layer. Below
           the first trained layer nothing is saved. If its input is read from the cache, those layers do not run.
loss       all saved activations, and final norm, head and loss.
backward   for the loss and then each layer, from the last to the first trained one: the remaining activations, the
           gradients made so far, and the temporary memory of the layer.
step       all gradients, and no activations.

Weights, optimizer states and the batch are in memory all the time. The peak is the largest moment of all phases, not
the sum of the largest parts. Sizes are the requested sizes of tensors. A GPU's allocator adds to them: it rounds up,
keeps free blocks (reserved memory), and holds the workspace of cuBLAS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig
from transformers.initialization import no_init_weights

from ..errors import CofituneError
from ..models.auto import auto_class, read_config
from ..models.checkpoint import Roles, with_roles
from ..models.fingerprint import PARTS as TRAINED_PARTS
from ..models.fingerprint import named_parameters
from ..ops._storage import STORAGES, new_state
from ..regions import Region
from .follow import ACTIVATIONS, GRADIENTS, Piece
from .pieces import Pieces
from .plan import PARTS, PHASES, QUANTIZE, MemoryPlan, Settings
from .quantized_layers import is_quantizable, quantized_bytes
from .tracker import MADE
from .work import WorkCount


def fake_model(
    source: str | Path | PretrainedConfig, dtype: torch.dtype = torch.bfloat16, attention: str | None = None,
    roles: Roles | None = None,
) -> nn.Module:
    """Build the model of a config, folder or hub id on fake tensors, without its weights.

    attention: "eager" for that implementation. All others are planned as sdpa. Its kernels save the same as flash-attn:
    the output, and one number per token and head. roles: as in `load_model`.
    """
    if not isinstance(source, PretrainedConfig):
        try:
            source = read_config(source)
        except CofituneError:
            raise
        except (OSError, ValueError) as error:
            raise CofituneError(f"No model configuration at {source}: {str(error).splitlines()[0]}") from None
    try:
        with FakeTensorMode(), no_init_weights():
            model = auto_class(source).from_config(
                source, dtype=dtype, **({"attn_implementation": "eager"} if attention == "eager" else {}))
            model.tie_weights()
    except ValueError:
        raise CofituneError(
            f"A {source.model_type} model is no causal language model; only those can be planned."
        ) from None
    return with_roles(model, roles)


def plan_memory(
    model: nn.Module, region: Region, *, batch_size: int, length: int, response_length: int | None = None,
    storage: str = "bf16_sr", masked: bool = False, **settings: Any,
) -> MemoryPlan:
    """Predict the memory of training `region` on batches of [batch_size, length] tokens.

    model: from `fake_model`. Its requires_grad flags are set to those of the region. response_length: response tokens
    per row (default: half of `length`); only these need logits. Further settings: see `Settings`.
    """
    return Planner(model, region).plan(Settings(
        batch_size=batch_size, length=length, response_length=response_length or max(1, length // 2), storage=storage,
        masked=masked, **settings,
    ))


class Planner:
    """Plans of one model and region under different settings. Parts that they share are measured once."""

    def __init__(self, model: nn.Module, region: Region):
        self.region, self.model = region, model
        self.trained = [parameter for _, parameter in region.apply(model)]
        self.pieces = Pieces(model)
        self._region_bytes = sum(parameter.nbytes for parameter in self.trained)
        self._total = sum(parameter.numel() for _, parameter in named_parameters(model))
        self._frozen = {method: self._frozen_bytes(method) for method in QUANTIZE}
        self._states = {storage: sum(_state_bytes(p, storage) for p in self.trained) for storage in STORAGES}

    @property
    def prefix_layers(self) -> int:
        """Number of layers below the first trained one."""
        return self.pieces.first

    def plan(self, settings: Settings) -> MemoryPlan:
        there, step = self._there(settings), settings.step()
        phases: dict[str, int] = dict.fromkeys(PHASES, 0)
        parts: Counter[str] = Counter()
        for phase, moment in self._moments(settings):
            total = there.total() + moment.total()
            if total > max(phases.values()):
                parts = moment
            phases[phase] = max(phases[phase], total)
        host: dict[str, int] = {}
        if settings.optimizer_states == "host":
            host["optimizer"] = self._states[settings.storage] + 2 * self._region_bytes
        if settings.prefix_weights == "host":
            host["prefix_weights"] = self._frozen[settings.quantize][1]
        count, form = sum(parameter.numel() for parameter in self.trained), STORAGES[settings.storage]
        return MemoryPlan(
            region=str(self.region),
            settings=settings,
            trained_parameters=count,
            total_parameters=self._total,
            parts={part: there[part] + parts[part] for part in PARTS},
            phases=phases,
            host=host,
            cache_per_row=self.pieces.surroundings(step).states // step.rows if self.prefix_layers else 0,
            filling=self._filling(settings) if settings.prefix == "cached" else 0,
            work=self._work(settings),
            optimizer_bytes=count * (form.moved + form.weight.itemsize),  # the norm reads the gradients once more
        )

    def _filling(self, settings: Settings) -> int:
        before = replace(settings, prefix="filled", prefix_weights="device")
        there = self._there(before)
        if settings.prefix_weights == "device":
            return there.total() + max(moment.total() for _, moment in self._moments(before))
        weights = there.total() - there["gradients"] - there["optimizer"]
        layers = islice(self._moments(before), self.prefix_layers)
        # After the run the weights return to the device while the optimizer is still there.
        return weights + max([there["optimizer"], *(moment.total() for _, moment in layers)])

    # Memory that is held all the time ------------------------------------------------------------------------------

    def _there(self, settings: Settings) -> Counter[str]:
        step, largest = settings.step(), max(parameter.nbytes for parameter in self.trained)
        accumulating = settings.accumulation > 1
        gradients, optimizer = self._region_bytes * accumulating, self._states[settings.storage]
        if settings.masked:
            optimizer += sum(4 * max(parameter.numel() // parameter.shape[-1], parameter.shape[0])
                             for parameter in self.trained)
        if settings.optimizer_states == "host":
            # Two gradients wait for the end of their copy (host_states.py), and accumulation needs one more.
            gradients, optimizer = largest * (3 if accumulating else 2), 0
        frozen, prefix = self._frozen[settings.quantize]
        return Counter(
            frozen_weights=frozen - (prefix if settings.prefix_weights == "host" else 0),
            region_weights=self._region_bytes,
            gradients=gradients,
            optimizer=optimizer,
            prefix_stream=self.pieces.surroundings(step).states if settings.prefix != "computed" else 0,
            workspace=8 * (2 * step.rows * step.length + 2 * step.responses),  # ids, mask, labels and their places
        )

    def _frozen_bytes(self, quantize: str) -> tuple[int, int]:
        """Bytes of all frozen weights, and of those in the layers below the first trained one."""
        counted: set[int] = set()
        layers = [_layer_bytes(layer, quantize, counted) for layer in self.pieces.layers]
        inside = {id(p) for layer in self.pieces.layers for p in layer.parameters()}
        outside = [p for p in self.model.parameters() if id(p) not in inside and not p.requires_grad]
        return (sum(layers) + sum(tensor.nbytes for tensor in (*outside, *self.model.buffers())),
                sum(layers[: self.prefix_layers]))

    # Memory that changes during a step -----------------------------------------------------------------------------

    def _moments(self, settings: Settings) -> Iterator[tuple[str, Counter[str]]]:
        """Yield (phase, {part: bytes}) of every layer in every phase, without the memory that is held all the time."""
        step, pieces = settings.step(), self.pieces
        around = pieces.surroundings(step)
        cached = settings.prefix == "cached"
        start = pieces.first if cached else 0
        layers = {index: pieces.layer(index, step) for index in range(start, len(pieces.layers))}
        # The embeddings' output is held until the end. It is the first layer's input unless the cache has that one.
        same_input = not around.embeddings_apart
        embeddings = 0 if same_input and layers[start].keeps_input and not cached else around.states
        holding = sum(around.shared.values()) + embeddings

        saved: list[tuple[int, Piece]] = []  # (activations after the part, the part) in the order of the forward
        kept: set[int] = set()
        if pieces.trains_embedding:
            embedding = pieces.embedding(step)
            saved.append((embedding.saved, embedding))
        activations = sum(size for size, _ in saved)
        for index, piece in layers.items():
            own_input = 0 if index == start and same_input else around.states
            yield "forward", Counter(activations=activations, workspace=holding + own_input + piece.forward)
            activations += piece.saved - (around.states if cached and index == start and piece.keeps_input else 0)
            saved.append((activations, piece))
            kept |= piece.shared
        shared = sum(around.shared[number] for number in kept)
        loss = pieces.loss(step)
        yield "loss", Counter(activations=activations, workspace=shared, loss=around.states + loss.forward)
        saved.append((activations + loss.saved, loss))

        everything, gradients, stale = saved[-1][0], 0, 0
        tied = self.model.get_output_embeddings().weight.nbytes if pieces.tied else 0
        for number in range(len(saved) - 1, -1, -1):
            left, piece = saved[number]
            if not piece.backward:
                break
            both = tied if number == 0 else 0  # autograd sums both gradients of a tied weight into a third tensor
            below = left - piece.saved
            for peak, stays in ((piece.backward, below + stale), (piece.first_backward, everything - piece.saved)):
                if peak:
                    yield "backward", Counter(activations=stays + peak.get(ACTIVATIONS, 0),
                                              gradients=gradients + peak.get(GRADIENTS, 0),
                                              workspace=shared + peak.get(MADE, 0) + both)
            gradients, stale = gradients + piece.gradients, stale + piece.stale
            if piece is loss and step.release:  # a tied head's gradient waits for the embeddings'
                gradients += tied
        yield "step", Counter(gradients=0 if step.release else self._region_bytes)

    def _work(self, settings: Settings) -> WorkCount:
        """Work of a whole step. "exact" counts two backwards; "lagged" counts one, as only its first step has two."""
        step, pieces = settings.step(), self.pieces
        parts = [pieces.layer(index, step)
                 for index in range(pieces.first if settings.prefix == "cached" else 0, len(pieces.layers))]
        parts += [pieces.loss(step), *([pieces.embedding(step)] if pieces.trains_embedding else [])]
        backwards = 2 if settings.gradient_release == "exact" else 1
        total = WorkCount()
        for piece in parts:
            total = total + piece.forward_work + piece.backward_work * backwards
        return total * settings.accumulation


def _layer_bytes(layer: nn.Module, quantize: str, counted: set[int]) -> int:
    """Bytes of the frozen parameters of a decoder layer, without those in `counted`, to which they are added.

    Of a tensor that is trained in part, the rest counts.
    """
    packed = {module.weight for module in layer.modules() if is_quantizable(module)}
    size = 0
    for name, parameter in layer.named_parameters():
        if TRAINED_PARTS in name:
            size -= parameter.nbytes
        elif not parameter.requires_grad and id(parameter) not in counted:
            counted.add(id(parameter))
            size += quantized_bytes(parameter, quantize if parameter in packed else "none")
    return size


def _state_bytes(parameter: Tensor, storage: str) -> int:
    state = new_state(torch.empty(parameter.shape, device="meta"), storage)
    return sum(tensor.nbytes for tensor in state.values())
