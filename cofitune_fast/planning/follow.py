"""One part of a model through forward and backward on fake tensors, under a tracker."""

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
    """How a step runs, as far as memory and work of its parts depend on it.

    [rows, length] tokens go through the model at once, of which `responses` are predicted. checkpointing: trained
    layers and those above keep their input alone. release: a gradient is freed as soon as it is made. twice: the
    backward runs twice over one graph. accumulate: gradients of earlier micro-batches are there already. quantize: of
    the frozen projections, "none", "nf4" or "int8".
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
    """Bytes and work of one part.

    forward: the most that lives while it runs, without its input [rows, length, hidden]. saved: kept for the backward,
    with the input where `keeps_input`. shared: the numbers of the tensors all layers are given that are kept, too.
    backward: {kind: bytes} at the most that lives in its backward; first_backward the same for the first of two.
    gradients: left afterwards; stale: activations that stay until the whole graph goes, because a function of autograd
    keeps them itself. backward_work: of one backward, what checkpointing computes again included.
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
    module: nn.Module, run: Callable[[list[Tensor], list, LiveBytes], Tensor], given: list, like: Tensor, step: Step,
    shared: Sequence[tuple[int, weakref.ref]] = (), *, grad_input: bool = True, graph: bool = True,
) -> Piece:
    """Run a part forward and backward between an input and an output gradient that nobody else holds.

    module: the part, whose gradients count. run: takes the input, in a list, `given`, which nobody else may hold
    either, and the tracker. like: a tensor of the input's shape and dtype. shared: numbers and storages of tensors in
    `given`. grad_input: the input requires a gradient. graph: the part runs with one.
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
        end = _End.apply(output) if output.dim() else output
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
    """{kind: bytes} at the peak of a backward."""
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
    """A fresh tensor of the shape, whose gradient is dropped."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return anchor.new_empty(shape, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        return None, None, None


class _End(torch.autograd.Function):
    """A scalar, whose backward makes a gradient of the output's shape that nobody else holds."""

    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        ctx.shape, ctx.dtype = output.shape, output.dtype
        return output.new_empty(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.new_empty(ctx.shape, dtype=ctx.dtype)
