"""Default learning rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

FULL_RATE, REGION_RATE, WIDTH = 1e-4, 4e-4, 576
"""Measured learning rates of SmolLM2-135M, whose hidden size is WIDTH (docs/comparison.md).

FULL_RATE is the best rate of full SFT. At REGION_RATE the anchored default region reaches 98 % of full SFT's speciality
on E2E with the least loss of versatility, and is best on GSM8K.
"""


def with_learning_rate(training: Mapping[str, Any], model: nn.Module, *, full: bool) -> dict[str, Any]:
    """Add a default learning rate to training arguments that have none; it is lower in wider models.

    rate(hidden) = rate(WIDTH) * min(1, WIDTH / hidden), to two digits: under Adam the step of a hidden matrix should
    shrink as its width grows (Yang et al., Tensor Programs V, arXiv 2203.03466). A region of a 13B model (hidden size
    5120) gets 4.5e-5 by this rule; the script of CoFiTune's authors has 4e-5. Beyond 135M the rule was not measured
    here.

    Args:
        full: every parameter is trained, not a region.
    """
    if "learning_rate" in training:
        return dict(training)
    hidden = model.config.get_text_config().hidden_size
    rate = (FULL_RATE if full else REGION_RATE) * min(1.0, WIDTH / hidden)
    return {**training, "learning_rate": float(f"{rate:.1e}")}
