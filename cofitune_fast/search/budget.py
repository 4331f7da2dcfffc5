"""Cost of a search in floating-point operations, and the budget that a user grants it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import CofituneError
from .uncertainty import Measure


@dataclass(frozen=True)
class Work:
    """Floating-point operations of training and scoring on one base and data set; a multiply-add counts as two.

    Only matrix products are counted, without attention scores, as in the usual 6 N per token (Kaplan et al., arXiv
    2001.08361, section 2.1). A product costs 2 per weight and token in the forward. The gradient of its input and that
    of its weight cost as much again, where they are needed. Layers below the region need neither. With `cached` these
    layers run once for all epochs and nodes that start at the same layer. The head sees response tokens only.

    Attributes:
        layer_parameters: for each layer, the weights that a token is multiplied with (`work.token_weights`).
        head_parameters: vocabulary times hidden size.
        tokens, responses: tokens and response tokens of one epoch of the training rows.
        epochs: epochs of a node's training.
        full_epochs: epochs of full fine-tuning.
        scored_tokens, scored_responses: those of the validation part; beginnings that items share count once.
        signal_tokens, drift_tokens, signal_responses: those of the early signal, see `Workbench.signal_tokens`.
        cached: the output of the layers below the region is cached.
        anchor_tokens, anchor_responses: those of the anchor texts in one epoch of a node.
        anchor_texts: tokens of all anchor texts, once.
    """

    layer_parameters: tuple[int, ...]
    head_parameters: int
    tokens: int
    responses: int
    epochs: float
    full_epochs: float
    scored_tokens: int
    scored_responses: int
    signal_tokens: int = 0
    drift_tokens: int = 0
    signal_responses: int = 0
    cached: bool = True
    anchor_tokens: int = 0
    anchor_responses: int = 0
    anchor_texts: int = 0

    @property
    def full_sft(self) -> float:
        """Operations of one full fine-tuning, the unit of all `full_sft` figures."""
        per_epoch = self.tokens * sum(self.layer_parameters) + self.responses * self.head_parameters
        return 6.0 * per_epoch * self.full_epochs

    def training(self, lowest: int | None, trained: int, begin: float, end: float, *, seen: float = 0.0) -> float:
        """Return the operations of training a region between two fractions of its training.

        Args:
            lowest: the region's lowest layer; None for the full model.
            trained: number of trained weights that a token is multiplied with.
            seen: share of the rows whose states at this layer are cached already.
        """
        epochs = self.epochs * (end - begin)
        if lowest is None:
            whole = self.full_sft / self.full_epochs
            return epochs * whole * (1 + self.anchor_tokens / self.tokens)
        above = sum(self.layer_parameters[lowest:])
        tokens, responses = self.tokens + self.anchor_tokens, self.responses + self.anchor_responses
        step = tokens * (4.0 * above + 2.0 * trained) + 4.0 * responses * self.head_parameters
        if self.cached:
            tokens = self.tokens + min(self.anchor_tokens, self.anchor_texts)
        below = max(0.0, self.rows_seen(end) - seen) if self.cached else epochs
        return step * epochs + 2.0 * tokens * sum(self.layer_parameters[:lowest]) * below

    def rows_seen(self, fraction: float) -> float:
        """Return the share of the rows that a node has trained on after a fraction of its training."""
        return min(1.0, self.epochs * fraction)

    def scoring(self, lowest: int | None = 0, *, first: bool = True) -> float:
        """Return the operations of scoring the validation part once.

        Args:
            lowest: as in `training`.
            first: the states below layer `lowest` are not cached yet.
        """
        return 2.0 * (self.scored_tokens * self._computed(lowest, first)
                      + self.scored_responses * self.head_parameters)

    def _computed(self, lowest: int | None, first: bool) -> int:
        """Return the weights of the layers that a scoring computes."""
        return sum(self.layer_parameters[0 if first or not self.cached else lowest or 0 :])

    def measuring(self, measure: Measure, lowest: int | None = 0, *, first: bool = True) -> float:
        """Return the operations of scoring a node once by Uni or by the signal, whose drift is computed in full."""
        if measure == "uni":
            return self.scoring(lowest, first=first)
        return 2.0 * (self.signal_tokens * self._computed(lowest, first)
                      + self.drift_tokens * sum(self.layer_parameters) + self.signal_responses * self.head_parameters)


UNITS = {"full_sft": "full fine-tunings", "hours": "hours", "tokens": "training tokens"}
_NAMES = {"sft": "full_sft", "full-sft": "full_sft", "full_sft": "full_sft", "h": "hours", "hour": "hours",
          "hours": "hours", "tok": "tokens", "token": "tokens", "tokens": "tokens"}


@dataclass(frozen=True)
class Budget:
    """A budget: an `amount` of full_sft (counted operations in units of one full fine-tuning), hours or tokens."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget from a text such as "2 full-sft", "1.5h", "5e6 tokens" or "3M tokens".

        Raises:
            CofituneError: the text is no amount above 0 with a known unit.
        """
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*([kMGB]?)\s*([a-z_-]+)\s*", str(text))
        if not match or match[3] not in _NAMES or float(match[1]) <= 0:
            raise CofituneError(f"search.budget is {text!r}; write an amount above 0 of full-sft, hours or tokens, "
                                "such as '2 full-sft', '1.5h' or '3M tokens'.")
        scale = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}[match[2]]
        return cls(float(match[1]) * scale, _NAMES[match[3]])

    def __str__(self) -> str:
        return f"{self.amount:g} {UNITS[self.unit]}"

    def used(self, seconds: float, tokens: float, full_sft: float) -> float:
        return {"hours": seconds / 3600, "tokens": tokens, "full_sft": full_sft}[self.unit]
