"""What a search costs in floating-point operations, and how much of it a user grants."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import CofituneError


@dataclass(frozen=True)
class Work:
    """Floating-point operations of training and scoring on one base and data set, a multiply-add counting two.

    Matrix products only, attention scores left out, as in the usual 6 N per token (Kaplan et al., arXiv 2001.08361,
    section 2.1): a product costs 2 per weight and token in the forward, and as much again for the gradient of its
    input and for that of its weight, where these are needed. Layers below the region need neither; with `cached` they
    run once for all epochs and nodes that start at the same layer. The head sees response tokens only.

    layers: number of decoder layers, of `layer_parameters` weights each; head_parameters: vocabulary times hidden size.
    tokens, responses: of one epoch of the training rows; epochs: of a node's training; full_epochs: of full
    fine-tuning. scored_tokens, scored_responses: of the validation part, each distinct beginning once. anchor_tokens,
    anchor_responses: of the anchor texts in one epoch of a node; anchor_texts: tokens of all of them once.
    """

    layers: int
    layer_parameters: int
    head_parameters: int
    tokens: int
    responses: int
    epochs: float
    full_epochs: float
    scored_tokens: int
    scored_responses: int
    cached: bool = True
    anchor_tokens: int = 0
    anchor_responses: int = 0
    anchor_texts: int = 0

    @property
    def full_sft(self) -> float:
        """One full fine-tuning, the unit of `full_sft` figures."""
        per_epoch = self.tokens * self.layers * self.layer_parameters + self.responses * self.head_parameters
        return 6.0 * per_epoch * self.full_epochs

    def training(self, lowest: int, trained: int, begin: float, end: float, *, seen: float = 0.0) -> float:
        """Of a region of `trained` parameters from layer `lowest` up, between two fractions of its training.

        seen: the share of the rows whose states at this layer are cached already.
        """
        epochs = self.epochs * (end - begin)
        above = (self.layers - lowest) * self.layer_parameters
        tokens, responses = self.tokens + self.anchor_tokens, self.responses + self.anchor_responses
        step = tokens * (4.0 * above + 2.0 * trained) + 4.0 * responses * self.head_parameters
        if self.cached:
            tokens = self.tokens + min(self.anchor_tokens, self.anchor_texts)
        below = max(0.0, self.rows_seen(end) - seen) if self.cached else epochs
        return step * epochs + 2.0 * tokens * lowest * self.layer_parameters * below

    def rows_seen(self, fraction: float) -> float:
        """The share of the rows that a node has trained on after a fraction of its training."""
        return min(1.0, self.epochs * fraction)

    def scoring(self, lowest: int = 0, *, first: bool = True) -> float:
        """Of the validation part once."""
        layers = self.layers if first or not self.cached else self.layers - lowest
        return 2.0 * (self.scored_tokens * layers * self.layer_parameters
                      + self.scored_responses * self.head_parameters)


UNITS = {"full_sft": "full fine-tunings", "hours": "hours", "tokens": "training tokens"}
_NAMES = {"sft": "full_sft", "full-sft": "full_sft", "full_sft": "full_sft", "h": "hours", "hour": "hours",
          "hours": "hours", "tok": "tokens", "token": "tokens", "tokens": "tokens"}


@dataclass(frozen=True)
class Budget:
    """An `amount` of a unit: full_sft (counted operations in units of one full fine-tuning), hours or tokens."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Of texts such as "2 full-sft", "1.5h", "5e6 tokens", "3M tokens"."""
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
