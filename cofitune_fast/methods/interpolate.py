"""Interpolation between the base and a trained model, tensor by tensor, without a second model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..regions import tensors_named


@torch.no_grad()
def interpolate(
    model: nn.Module, base: Mapping[str, Tensor], endpoint: Callable[[str, Tensor], Tensor], alpha: float
) -> None:
    """Write base + alpha (trained - base) into the tensors named in `base` (Wortsman et al., WiSE-FT, arXiv
    2109.01903).

    The arithmetic is float32, with one rounding to the parameter's dtype. Alpha 1 gives the trained value itself.

    Args:
        base: {name: the base's tensor}.
        endpoint: maps (name, base's tensor) to the trained tensor of the same shape.
    """
    parameters = tensors_named(model, base)
    for name, start in base.items():
        end = endpoint(name, start)
        parameters[name].copy_(end if alpha == 1 else start.float() + alpha * (end.float() - start.float()))
