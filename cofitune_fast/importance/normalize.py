"""From raw scores to importances in [0, 1], layer by layer.

A normaliser takes scores [..., units] of any float dtype and gives float32 of the same shape; each last-dimension row
(one layer) is normalised by itself. It works in float64 inside: raw scores may be as small as 1e-20, whose square
float32 cannot hold.
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
    """|tanh(z)| with z = (s - mean) / std of the layer, std over the population (divided by n, not n - 1).

    Formula: Ke et al., "Continual Pre-training of Language Models" (DAS, ICLR 2023), which CoFiTune (arXiv 2404.10306)
    takes over. It is not monotone: a unit far below the mean gets as much importance as one far above it. A layer
    whose scores are all equal gives zeros, as no unit stands out.
    """
    scores = scores.double()
    std, mean = torch.std_mean(scores, dim=-1, correction=0, keepdim=True)
    # Rounding leaves a tiny std in a constant layer, so its constancy is asked of the scores themselves.
    constant = scores.amax(-1, keepdim=True) == scores.amin(-1, keepdim=True)
    z = torch.where(constant, 0.0, (scores - mean) / std)
    return z.tanh().abs().float()


def fractional_rank(scores: Tensor) -> Tensor:
    """Rank from 0 (least) to n - 1 (most important) over n - 1; equal scores share the average of their ranks.

    Monotone in the score, and uniform over [0, 1] whatever the distribution of the scores. A constant layer gives 0.5
    everywhere; a layer of one unit gives 0.
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
    """How importances are made and where they land.

    down: what masks `ffn.down`. "output": its rows, by the FFN outputs (the paper). "neuron": its columns, by the
    FFN neurons, so that a neuron is protected as a whole: its row of gate and up and its column of down.
    """

    name: str
    normalizer: Callable[[Tensor], Tensor]
    down: Literal["output", "neuron"]


PresetName = Literal["paper", "rank", "rank-output"]
PRESETS: dict[PresetName, Preset] = {
    preset.name: preset
    for preset in (
        Preset("paper", abs_tanh_z, down="output"),
        Preset("rank", fractional_rank, down="neuron"),
        Preset("rank-output", fractional_rank, down="output"),
    )
}


def get_preset(preset: str | Preset) -> Preset:
    """The preset of a name; a `Preset` passes through. Raises CofituneError for an unknown name."""
    return preset if isinstance(preset, Preset) else PRESETS[known(preset, PRESETS, "importance preset")]


def combine(importances: Sequence[Tensor]) -> Tensor:
    """Element-wise maximum of normalised importances of one shape: a unit is protected if any source asks for it.

    Source of the rule: DAS, as for `abs_tanh_z`. Raises CofituneError if there is nothing to join or shapes differ.
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
