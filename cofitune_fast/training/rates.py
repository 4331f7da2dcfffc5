"""The learning rate of a run that names none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

FULL_RATE, REGION_RATE, WIDTH = 1e-4, 4e-4, 576
"""Of SmolLM2-135M, whose hidden size is WIDTH: full SFT's best rate, and the one at which the anchored default region
comes to 98 % of full SFT's speciality on E2E with the least loss, and is best on GSM8K (docs/comparison.md)."""


def with_learning_rate(training: Mapping[str, Any], model: nn.Module, *, full: bool) -> dict[str, Any]:
    """The training arguments with a learning rate: their own, or else the measured one, less in wider models.

    rate(hidden) = rate(WIDTH) * min(1, WIDTH / hidden), to two digits: under Adam the step of a hidden matrix is to
    shrink as its width grows (Yang et al., Tensor Programs V, arXiv 2203.03466). A region of a 13B model (hidden size
    5120) gets 4.5e-5 by it, where the script of CoFiTune's authors has 4e-5; nothing beyond 135M is measured here.
    """
    if "learning_rate" in training:
        return dict(training)
    hidden = model.config.get_text_config().hidden_size
    rate = (FULL_RATE if full else REGION_RATE) * min(1.0, WIDTH / hidden)
    return {**training, "learning_rate": float(f"{rate:.1e}")}
