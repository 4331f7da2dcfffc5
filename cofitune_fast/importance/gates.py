"""Virtual gates: the gradient of the loss by a gate on each unit, read from hooks on an unedited model.

A gate g = 1 multiplies a unit's output y_u. Then dL/dg = sum_t y_u[t] . dL/dy_u[t], so the gate need not exist, and no
weight gradient is computed. A gate on a head's attention probabilities equals a gate on the head's output. So a head is
read at the input of the output projection, and every attention backend works.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..regions import Layout
from .names import HEAD, NEURON, OUTPUT, UNITS, unit_counts

_ROLE = {NEURON: "ffn.up", OUTPUT: "ffn.down", HEAD: "attn.o"}


@dataclass
class Gates:
    """Scores collected by `collect`.

    passes: number of consecutive rows that are one sample.
    scores: kind -> layer -> float32 [units] on the layer's device: the sum of |dL_n/dg_u| over the samples n so far.
    attention_mask: [rows, tokens], 1 for a token and 0 for padding; None: no padding. Set it before every forward.
    """

    passes: int
    scores: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    attention_mask: Tensor | None = None


@contextmanager
def collect(
    model: nn.Module, layout: Layout, layers: Sequence[int], units: Sequence[str] = UNITS, *, passes: int = 1
) -> Iterator[Gates]:
    """Context in which every backward adds to `Gates.scores` of these layers and unit kinds.

    The loss must be the SUM over samples of each sample's own loss, so that a row's gradient is that of its own loss.
    passes=2: two consecutive rows are two passes of one sample; their gradients are added before the absolute value.

    In the block no parameter requires a gradient. The graph begins at the lowest gate, so the layers below it keep no
    activations. On exit, also after an exception, the hooks are removed and requires_grad is restored.
    """
    gates = Gates(passes)
    with ExitStack() as stack:
        stack.enter_context(_frozen(model))
        lowest = layout.decoder_layer(min(layers))
        stack.callback(lowest.register_forward_pre_hook(_cut_graph, with_kwargs=True).remove)
        for kind in units:
            gates.scores[kind] = {}
            unit_size = layout.head_dim if kind == HEAD else 1
            for layer in layers:
                module = layout.module(layer, _ROLE[kind])
                scores = torch.zeros(unit_counts(layout)[kind], dtype=torch.float32, device=module.weight.device)
                gates.scores[kind][layer] = scores
                watch = partial(_watch, gates, scores, unit_size)
                # First of all hooks, as the gate is on the module's own output, before other hooks change it.
                if kind == HEAD:
                    handle = module.register_forward_pre_hook(lambda _, inputs, watch=watch: watch(inputs[0]))
                else:
                    handle = module.register_forward_hook(
                        lambda _, inputs, output, watch=watch: watch(output), prepend=True
                    )
                stack.callback(handle.remove)
        yield gates


def _watch(gates: Gates, scores: Tensor, unit_size: int, y: Tensor) -> None:
    if not torch.is_grad_enabled():
        return
    if not y.requires_grad:
        y.requires_grad_()
    value = y.detach()  # y itself would be a reference cycle: tensor -> hook -> tensor

    def accumulate(grad: Tensor) -> None:
        mask = gates.attention_mask
        mask = None if mask is None else mask.to(grad.device)
        ops.unit_importance_(scores, value, grad, attention_mask=mask, unit_size=unit_size, passes=gates.passes)

    y.register_hook(accumulate)


def _cut_graph(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Detach a decoder layer's input. After `enable_input_require_grads()` the graph would begin at the embeddings."""

    def detach(value: Any) -> Any:
        return value.detach() if isinstance(value, Tensor) else value

    return tuple(map(detach, args)), {key: detach(value) for key, value in kwargs.items()}


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
