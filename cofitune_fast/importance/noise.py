"""Dropout of the proxy loss: after every FFN and on the attention probabilities, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CofituneError
from ..regions import Layout


@contextmanager
def dropout_only(layout: Layout, p: float) -> Iterator[None]:
    """Context in which every layer drops outputs of `ffn.down` and attention probabilities with probability p.

    The authors' code has dropout at the same places. The model must be in eval mode, so that no other dropout is
    active: only the training flag of each attention module is set, and not the flags of its children. Layers below the
    lowest gate have dropout too, as the two passes should differ in the whole model.

    Raises CofituneError if an attention module has no `attention_dropout`. Everything is restored on exit.
    """

    def drop(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return F.dropout(output, p, training=True)

    with ExitStack() as stack:
        for layer in range(layout.num_layers):
            stack.callback(layout.module(layer, "ffn.down").register_forward_hook(drop).remove)
            attention = layout.attention(layer)
            if not hasattr(attention, "attention_dropout"):
                raise CofituneError(
                    f"{type(attention).__name__} has no attribute `attention_dropout`, so the dropout of the "
                    "proxy kl_dropout cannot be set there; use proxy='task_nll'."
                )
            stack.callback(setattr, attention, "attention_dropout", attention.attention_dropout)
            stack.callback(setattr, attention, "training", attention.training)
            attention.attention_dropout, attention.training = p, True
        yield


@contextmanager
def seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Context with random numbers from `seed`, on the CPU and the model's GPUs. Their states are restored."""
    gpus = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for index in gpus:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
