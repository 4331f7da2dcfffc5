"""Dropout of the proxy loss: after every FFN and on the attention probabilities, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import CofituneError
from ..regions import Layout


@contextmanager
def dropout_only(layout: Layout, p: float) -> Iterator[None]:
    """Context in which every layer drops outputs of its FFN and attention probabilities with probability p.

    The authors' code has dropout at the same places. The output of an FFN is that of `ffn.down`, or of all experts
    together. The model must be in eval mode, so that no other dropout is active: only the training flag of each
    attention module is set, and not the flags of its children. Layers below the lowest gate have dropout too, as the
    two passes should differ in the whole model.

    Raises CofituneError if a layer lacks one of the two, or its attention has no `attention_dropout` that is a number.
    Everything is restored on exit.
    """

    def drop(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):  # experts may return the router's logits, too
            return F.dropout(output[0], p, training=True), *output[1:]
        return F.dropout(output, p, training=True)

    with ExitStack() as stack:
        for layer in range(layout.num_layers):
            ffn, attention = _ffn(layout, layer), layout.attention(layer)
            if ffn is None or attention is None:
                raise CofituneError(
                    f"Layer {layer} has no {'feed-forward part' if ffn is None else 'single attention'}, so the "
                    "dropout of the proxy kl_dropout cannot be set there; use proxy='task_nll'."
                )
            if not isinstance(getattr(attention, "attention_dropout", None), (int, float)):
                raise CofituneError(
                    f"{type(attention).__name__} of layer {layer} has no attribute `attention_dropout` that is a "
                    "number, so the dropout of the proxy kl_dropout cannot be set there; use proxy='task_nll'."
                )
            stack.callback(ffn.register_forward_hook(drop).remove)
            stack.callback(setattr, attention, "attention_dropout", attention.attention_dropout)
            stack.callback(setattr, attention, "training", attention.training)
            attention.attention_dropout, attention.training = p, True  # type: ignore[assignment]
        yield


def _ffn(layout: Layout, layer: int) -> nn.Module | None:
    """The module whose output is that of the layer's FFN: `ffn.down`, or the whole part if there are experts."""
    cells = layout.at(layer, "ffn.down")
    if len(cells) == 1 and not layout.blocks[cells[0].block].experts:
        return layout.module(cells[0])
    return layout.ffn(layer)


@contextmanager
def seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Context with random numbers from `seed`, on the CPU and the model's GPUs. Their states are restored."""
    gpus = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for index in gpus:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
