"""Dropout of the proxy loss: after every FFN and on the attention probabilities, and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..regions import Layout


@contextmanager
def dropout_only(layout: Layout, p: float) -> Iterator[None]:
    """Context in which every layer drops outputs of its FFN and attention probabilities with probability p.

    The authors' code has dropout at the same places. The output of an FFN is that of `ffn.down`, or of all experts
    together. Where attention has no `attention_dropout`, and where another mixer is in its place, the mixer's output is
    dropped in place of the probabilities, and a log line says so. The model must be in eval mode, so that no other
    dropout is active: only the training flag of each attention module is set, and not the flags of its children. Layers
    below the lowest gate have dropout too, as the two passes should differ in the whole model. On exit everything is
    restored.
    """

    def drop(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):  # experts may return the router's logits, too
            return F.dropout(output[0], p, training=True), *output[1:]
        return F.dropout(output, p, training=True)

    others = []
    with ExitStack() as stack:
        for layer in range(layout.num_layers):
            if (ffn := _ffn(layout, layer)) is not None:
                stack.callback(ffn.register_forward_hook(drop).remove)
            attention = layout.attention(layer)
            if isinstance(getattr(attention, "attention_dropout", None), (int, float)):
                stack.callback(setattr, attention, "attention_dropout", attention.attention_dropout)
                stack.callback(setattr, attention, "training", attention.training)
                attention.attention_dropout, attention.training = p, True  # type: ignore[union-attr,assignment]
                continue
            mixers = {block.name for block in layout.blocks.values() if block.layer == layer and block.kind != "ffn"}
            for name in mixers:
                stack.callback(layout.module_named(name).register_forward_hook(drop).remove)
            others += [layer] * bool(mixers)
        if others:
            logging.getLogger("cofitune_fast").info(
                "Attention probabilities of %d layers cannot be dropped; the output of their mixers is.", len(others))
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
