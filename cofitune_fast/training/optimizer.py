"""Options of an Adam optimizer as transformers.Trainer reads them from its arguments."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor
from transformers import TrainingArguments

from ..regions import whole_name


def adam_options(args: TrainingArguments) -> dict[str, Any]:
    """Return lr, betas, eps and seed for MaskedAdamW."""
    return {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon,
            "seed": args.seed}


def decay_groups(
    pairs: Sequence[tuple[str, Tensor]], decayed: Collection[str], weight_decay: float
) -> list[dict[str, Any]]:
    """Divide (name, parameter) pairs into those that decay and those that do not; a group without any is left out.

    Args:
        decayed: names of the tensors that decay, see `Trainer.get_decay_parameter_names`. A part of a tensor decays as
            the tensor does.
    """
    decays = [pair for pair in pairs if whole_name(pair[0]) in decayed]
    others = [pair for pair in pairs if whole_name(pair[0]) not in decayed]
    return [{"params": params, "weight_decay": decay} for params, decay in ((decays, weight_decay), (others, 0.0))
            if params]
