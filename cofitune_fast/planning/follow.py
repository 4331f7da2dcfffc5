"""Run one part of a model forward and backward on fake tensors, and track its memory and work."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .tracker import MADE, LiveBytes
from .work import Work, WorkCount

GRADIENTS, ACTIVATIONS, INPUT = "gradients", "activations", "input"


@dataclass(frozen=True)
class Step:
    """Properties of a step on which memory and work of its parts depend.

    rows, length: shape of the tokens that go through the model at once.
    responses: number of predicted tokens among them.
    checkpointing: trained layers, and the layers above them, keep only their input.
    release: each gradient is freed as soon as it is made.
    twice: the backward runs twice over one graph.
    quantize: quantisation of the frozen projections, "none", "nf4" or "int8".
    """

    rows: int
    length: int
    responses: int
    checkpointing: bool = False
    release: bool = False
    twice: bool = False
    quantize: str = "none"


@dataclass(frozen=True)
class Piece:
    """Bytes and work of one part of a model.

    forward: peak of the forward, without the part's input [rows, length, hidden].
    saved: bytes kept for the backward. They include the input if `keeps_input`.
    shared: numbers of the tensors shared by all layers that this part also keeps.
    backward: {kind: bytes} at the peak of the backward. first_backward: the same for the first of two backwards.
    gradients: bytes of gradients that remain afterwards.
    stale: bytes of activations that remain until the whole graph is freed, as an autograd function holds them itself.
    forward_work, backward_work: work of one pass; the backward includes the recomputation by checkpointing.
    """

    forward: int
    saved: int
    keeps_input: bool
    shared: frozenset[int]
    backward: dict[str, int]
    first_backward: dict[str, int]
    gradients: int
    stale: int
    forward_work: WorkCount
    backward_work: WorkCount


def follow(
    module: nn.Module, run: Callable[[list[Tensor], list, LiveBytes], Tensor | tuple[Tensor, ...]], given: list,
    like: Tensor, step: Step, shared: Sequence[tuple[int, weakref.ref]] = (), *, grad_input: bool = True,
    graph: bool = True,
) -> Piece:
    """Run a part forward and backward, with an input and an output gradient that nothing else references.

    module: the part. The gradients of its parameters are counted.
    run: function of the input (in a list), `given` and the tracker; returns the output, or several. Nothing else may
        reference the tensors of either list.
    like: a tensor of the input's shape and dtype.
    shared: numbers and storages of tensors in `given`.
    grad_input: True if the input requires a gradient. graph: True if the part runs with a graph.
    """
    module.train()
    with LiveBytes() as live, Work() as work:
        live.exclude(leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor))
        states = [_Begin.apply(torch.empty((), requires_grad=grad_input), like.shape, like.dtype)]
        live.count(states, INPUT)
        held, input_storage = live.kinds[INPUT], weakref.ref(states[0].untyped_storage())
        live.restart()
        work.restart()
        with torch.set_grad_enabled(graph):
            output = run(states, given, live)
        forward, forward_work = live.peak - held, work.count
        if not graph:
            return Piece(forward, 0, False, frozenset(), {}, {}, 0, 0, forward_work, WorkCount())
        outputs = output if isinstance(output, tuple) else (output,)
        end = _End.apply(*outputs) if outputs[0].dim() else outputs[0]
        del outputs
        del output
        states.clear()
        given.clear()
        keeps_input, saved = input_storage() is not None, live.live
        kept = frozenset(number for number, storage in shared if storage() is not None)
        live.rename(MADE, ACTIVATIONS)
        live.rename(INPUT, ACTIVATIONS)
        first = _backward(module, end, live, step, retain=True) if step.twice else {}
        work.restart()
        backward = _backward(module, end, live, step, retain=False)
        gradients, stale = live.kinds[GRADIENTS], live.kinds[ACTIVATIONS]
        for parameter in module.parameters():
            parameter.grad = None
    module.eval()
    return Piece(forward, saved, keeps_input, kept, backward, first, gradients, stale, forward_work, work.count)


def _backward(module: nn.Module, end: Tensor, live: LiveBytes, step: Step, *, retain: bool) -> dict[str, int]:
    """Run a backward; returns {kind: bytes} at its peak."""
    def made(parameter: Tensor) -> None:
        live.count([parameter.grad], GRADIENTS)
        if step.release:
            parameter.grad = None

    handles = [p.register_post_accumulate_grad_hook(made) for p in module.parameters() if p.requires_grad]
    live.restart()
    end.backward(retain_graph=retain)
    for handle in handles:
        handle.remove()
    return dict(live.at_peak)


class _Begin(torch.autograd.Function):
    """Make a new tensor of a shape. Its gradient is dropped."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return anchor.new_empty(shape, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        return None, None, None


class _End(torch.autograd.Function):
    """Make a scalar whose backward creates gradients of the outputs' shapes that nothing else references."""

    @staticmethod
    def forward(ctx: Any, *outputs: Tensor) -> Tensor:
        ctx.forms = [(output.shape, output.dtype) for output in outputs]
        return outputs[0].new_empty(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradient.new_empty(shape, dtype=dtype) for shape, dtype in ctx.forms)
