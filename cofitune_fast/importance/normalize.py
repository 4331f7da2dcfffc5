"""Normalise raw scores to importances in [0, 1], layer by layer.

A normaliser takes scores [..., units] of any float dtype and returns float32 of the same shape. Each row along the last
dimension is a layer and is normalised by itself; layers of different sizes come one by one (`names.layer_by_layer`). It
computes in float64, as raw scores may be as small as 1e-20, whose square underflows in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import CofituneError
from .names import known


def abs_tanh_z(scores: Tensor) -> Tensor:
    """Compute |tanh(z)| with z = (s - mean) / std of the layer. std is that of the population (divided by n).

    Formula: Ke et al., "Continual Pre-training of Language Models" (DAS, ICLR 2023), adopted by CoFiTune
    (arXiv 2404.10306). It is not monotone: a unit far below the mean is as important as one far above it. A layer with
    equal scores gives zeros.
    """
    scores = scores.double()
    std, mean = torch.std_mean(scores, dim=-1, correction=0, keepdim=True)
    # A constant layer may have a tiny std from rounding, so constant layers are detected by their scores.
    constant = scores.amax(-1, keepdim=True) == scores.amin(-1, keepdim=True)
    z = torch.where(constant, 0.0, (scores - mean) / std)
    return z.tanh().abs().float()


def fractional_rank(scores: Tensor) -> Tensor:
    """Compute the rank, 0 for the least important unit to n - 1 for the most important, divided by n - 1.

    Equal scores share their average rank. The result is monotone in the score, and uniform over [0, 1] for every
    distribution of scores. A constant layer gives 0.5 everywhere; a layer of one unit gives 0.
    """
    rows = scores.double().reshape(-1, scores.shape[-1])
    ranks = torch.stack([_average_ranks(row) for row in rows]).reshape(scores.shape)
    return (ranks / max(scores.shape[-1] - 1, 1)).float()


def _average_ranks(row: Tensor) -> Tensor:
    _, group, counts = torch.unique(row, sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0) - 1
    return (last - (counts - 1) / 2)[group]


@dataclass(frozen=True)
class Preset:
    """Normaliser of the importances, and the units that mask `ffn.down`.

    down: "output" masks its rows by the FFN outputs (the paper). "neuron" masks its columns by the FFN neurons, so that
    a neuron is protected as a whole: its row of gate and up, and its column of down.
    """

    name: str
    normalizer: Callable[[Tensor], Tensor]
    down: Literal["output", "neuron"]


PresetName = Literal["paper", "rank", "rank-output"]
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("paper", abs_tanh_z, down="output"),
        Preset("rank", fractional_rank, down="neuron"),
        Preset("rank-output", fractional_rank, down="output"),
    )
}


def get_preset(preset: str | Preset) -> Preset:
    """Look up a preset by name; a `Preset` is returned as it is. Raises CofituneError for an unknown name."""
    return preset if isinstance(preset, Preset) else PRESETS[known(preset, PRESETS, "importance preset")]


def combine(importances: Sequence[Tensor]) -> Tensor:
    """Element-wise maximum of normalised importances of one shape: a unit is protected if any source protects it.

    The rule is from DAS, see `abs_tanh_z`. Raises CofituneError if there are no importances or their shapes differ.
    """
    if not importances:
        raise CofituneError("There is no importance to combine; give at least one.")
    shapes = {tuple(importance.shape) for importance in importances}
    if len(shapes) > 1:
        raise CofituneError(
            f"Importances of different shapes cannot be combined ({', '.join(map(str, sorted(shapes)))}); "
            "they must be of the same layers and units of one model."
        )
    return torch.stack(list(importances)).amax(0)
