"""MaskedAdamW for transformers.Trainer's argument `optimizer_cls_and_kwargs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import Trainer, TrainingArguments

from ..errors import CofituneError
from ..optim import MaskedAdamW
from ..regions import trained_parameters
from ..training.optimizer import adam_options, decay_groups


def masked_adamw(args: TrainingArguments, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Return the argument `optimizer_cls_and_kwargs` of a Trainer that steps by MaskedAdamW.

    The optimizer trains what requires a gradient when training begins. Learning rate, betas, eps, weight decay and
    seed are those of `args`. As with Trainer's own optimizers, biases and norms do not decay, and Trainer clips by
    `args.max_grad_norm`; the optimizer does not clip again.

    Args:
        args: the Trainer's arguments.
        options: further arguments of MaskedAdamW, such as masks or storage, or others in place of those of `args`.

    Raises:
        CofituneError: max_grad_norm is among the options.
    """
    if "max_grad_norm" in options:
        raise CofituneError("masked_adamw was given max_grad_norm, and Trainer clips by args.max_grad_norm; set that.")
    return _factory, {**adam_options(args), "weight_decay": args.weight_decay, **options}


def _factory() -> Callable[..., MaskedAdamW]:
    """Return the function that makes the optimizer; Trainer calls a factory once to get it."""
    return _made


def _made(model: nn.Module, *, weight_decay: float, **options: Any) -> MaskedAdamW:
    decayed = Trainer.get_decay_parameter_names(None, model)  # heeds no state of a Trainer
    return MaskedAdamW(decay_groups(trained_parameters(model), set(decayed), weight_decay), max_grad_norm=None,
                       **options)
