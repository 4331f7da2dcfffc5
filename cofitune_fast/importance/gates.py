"""Virtual gates: the gradient of the loss by a gate on each unit, read from hooks on an unedited model.

A gate g = 1 multiplies a unit's output y_u. Then dL/dg = sum_t y_u[t] . dL/dy_u[t], so the gate need not exist, and no
weight gradient is computed.

- A neuron is read at the input of `ffn.down`. Where the FFN has a gate projection, a gate on the neuron's output of
  `ffn.up` gives the same number, as the two are multiplied; without one, only this place is right.
- An FFN output is read at the output of `ffn.down`.
- A gate on a head's attention probabilities equals a gate on the head's output. So a head is read at the input of the
  output projection, and every attention backend works.

Experts are parameters [experts, ...] of one module, and their activations are nowhere to be hooked. There the gradient
of the down weight W holds the answer: for neuron j of expert e, dL/dg = sum over the outputs o of W[e, o, j]
dL/dW[e, o, j]. For an output it is the sum over the neurons, and the bias's share. It is the gradient of all tokens of
the batch, so one sample is fed at a time. An expert that no token of a sample is sent to has the gradient 0 for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..errors import CofituneError
from ..regions import Cell, Layout
from .names import OUTPUT, UNITS, unit_count, units_of


@dataclass
class Gates:
    """Scores collected by `collect`.

    passes: number of consecutive rows that are one sample.
    one_sample: True if each backward must be of a single sample without padding, with `end_sample` after it.
    scores: kind -> layer -> float32 [units] on the layer's device: the sum of |dL_n/dg_u| over the samples n so far.
    attention_mask: [rows, tokens], 1 for a token and 0 for padding; None: no padding. Set it before every forward.
    """

    passes: int
    one_sample: bool = False
    scores: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    attention_mask: Tensor | None = None
    _sums: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def end_sample(self) -> None:
        """Add the absolute values of the sample's gate gradients to the scores. Nothing to do without `one_sample`."""
        for scores, sums in self._sums:
            scores += sums.abs()
            sums.zero_()

    def _sum_for(self, scores: Tensor) -> Tensor:
        sums = torch.zeros_like(scores)
        self._sums.append((scores, sums))
        return sums


@contextmanager
def collect(
    model: nn.Module, layout: Layout, layers: Sequence[int], units: Sequence[str] = UNITS, *, passes: int = 1
) -> Iterator[Gates]:
    """Context in which every backward adds to `Gates.scores` of these layers and unit kinds.

    The loss must be the SUM over samples of each sample's own loss, so that a row's gradient is that of its own loss.
    passes=2: two consecutive rows are two passes of one sample; their gradients are added before the absolute value.

    In the block only the down projections of measured experts require a gradient, which is freed as soon as it was
    read. The graph begins at the lowest gate, so the layers below it keep no activations. On exit, also after an
    exception, the hooks are removed, and requires_grad and the gradients are restored.
    """
    measured = [(kind, layer, cell) for kind in units for layer in layers for cell, _ in units_of(layout, layer, kind)]
    gates = Gates(passes, one_sample=_needs_one_sample(layout, [cell for _, _, cell in measured]))
    with ExitStack() as stack:
        stack.enter_context(_frozen(model))
        if layout.in_order:
            used = [number for _, _, cell in measured for number in (cell.layer, *cell.shared)]
            lowest = layout.decoder_layer(min(used, default=0))
            stack.callback(lowest.register_forward_pre_hook(_cut_graph, with_kwargs=True).remove)
        experts: dict[str, tuple[Cell, list[tuple[str, Tensor]]]] = {}
        for kind in units:
            gates.scores[kind] = {}
            for layer in layers:
                cells = units_of(layout, layer, kind)
                device = layout.whole(cells[0][0]).device if cells else None
                scores = torch.zeros(unit_count(layout, layer, kind), dtype=torch.float32, device=device)
                gates.scores[kind][layer] = scores
                for (cell, _), own in zip(cells, scores.split([count for _, count in cells]), strict=True):
                    if layout.whole(cell).dim() == 3:
                        experts.setdefault(cell.parameter, (cell, []))[1].append((kind, gates._sum_for(own)))
                    else:
                        stack.callback(_hook(gates, layout.module(cell), kind, own).remove)
        for cell, sums in experts.values():
            stack.enter_context(_expert_gradients(layout, cell, sums))
        yield gates


def _needs_one_sample(layout: Layout, cells: Sequence[Cell]) -> bool:
    """True if a gate's gradient is known for a whole batch only: with experts, whose tokens are mixed, and with modules
    that run more than once, whose gradients must be added before the absolute value."""
    several = any(len(layout.at(cell.layer, "ffn.down")) > 1 for cell in cells if cell.role == "ffn.down")
    return several or not layout.in_order or any(cell.shared or layout.whole(cell).dim() == 3 for cell in cells)


def _hook(gates: Gates, module: nn.Module, kind: str, scores: Tensor) -> Any:
    watch = partial(_watch, gates, scores, gates._sum_for(scores) if gates.one_sample else None)
    if kind != OUTPUT:
        return module.register_forward_pre_hook(partial(_watch_input, watch))
    # First of all hooks, as the gate is on the module's own output, before other hooks change it. The values are
    # copied, as Llama 4 adds the experts' output to the shared expert's in place.
    return module.register_forward_hook(lambda _, inputs, output: watch(output, output.detach().clone()), prepend=True)


def _watch_input(watch: Callable[[Tensor, Tensor], None], _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Watch a view of the input, which has no other use, so its gradient comes through this module alone."""
    y = inputs[0].view_as(inputs[0])
    watch(y, y.detach())
    return y, *inputs[1:]


def _watch(gates: Gates, scores: Tensor, sums: Tensor | None, y: Tensor, value: Tensor) -> None:
    """Add to the scores when the gradient of y arrives. value: y without its graph, which would be a circle of
    references (tensor, hook, tensor)."""
    if not torch.is_grad_enabled():
        return
    if not y.requires_grad:
        y.requires_grad_()
    size = value.shape[-1] // len(scores)

    def accumulate(grad: Tensor) -> None:
        if sums is not None:
            sums.add_((value.float() * grad.float()).reshape(-1, len(sums), size).sum((0, 2)))
            return
        mask = gates.attention_mask
        mask = None if mask is None else mask.to(grad.device)
        ops.unit_importance_(scores, _by_row(value, mask), _by_row(grad, mask), attention_mask=mask, unit_size=size,
                             passes=gates.passes)

    y.register_hook(accumulate)


def _by_row(y: Tensor, mask: Tensor | None) -> Tensor:
    """Give y the shape [rows, tokens, features]; OPT, for one, calls its FFN with [rows x tokens, features]."""
    return y if mask is None or y.dim() == 3 else y.reshape(*mask.shape, y.shape[-1])


@contextmanager
def _expert_gradients(layout: Layout, cell: Cell, sums: Sequence[tuple[str, Tensor]]) -> Iterator[None]:
    """Context in which each backward adds the gate gradients of experts to `sums`: (kind, [experts x units]) pairs."""
    outputs = [total for kind, total in sums if kind == OUTPUT]

    def of_weight(weight: Tensor) -> None:
        gradient, weight.grad = weight.grad, None
        # One expert after the other: float32 copies of all of them would be much memory.
        for expert, (w, dw) in enumerate(zip(weight.detach(), gradient, strict=True)):
            product = w.float() * dw.float()
            for kind, total in sums:
                over = 2 - cell.out if kind == OUTPUT else cell.out - 1  # outputs are summed away for a neuron
                total.view(len(weight), -1)[expert] += product.sum(over)

    def of_bias(bias: Tensor) -> None:
        gradient, bias.grad = bias.grad, None
        for total in outputs:
            total += (bias.detach().float() * gradient.float()).flatten()

    hooks = {layout.whole(cell): of_weight}
    found = layout.bias(cell)
    if found is not None and outputs:
        hooks[found[1]] = of_bias
    with ExitStack() as stack:
        for parameter, hook in hooks.items():
            if not parameter.is_floating_point() or parameter.element_size() < 2:
                raise CofituneError(
                    f"{cell.parameter} is quantised ({parameter.dtype}), so the importance of its experts cannot be "
                    "measured; load these layers in bfloat16 or measure a region without them."
                )
            stack.callback(setattr, parameter, "grad", parameter.grad)
            parameter.grad = None
            stack.callback(parameter.requires_grad_, False)
            parameter.requires_grad_(True)
            stack.callback(parameter.register_post_accumulate_grad_hook(hook).remove)
        yield


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
