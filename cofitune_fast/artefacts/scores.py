"""Types of scores in all artefacts: figures in [0, 1], larger is better, each with its standard error."""

from __future__ import annotations

import math
from typing import Annotated, Required

from .fields import Check, Entry, Error, Fraction, Missing, Read, between, nan, number

GROUPS = ("knowledge", "reasoning", "instruction")
"""Groups of tasks; Vers is the mean of their scores."""
SCORES = ("spec", "vers", *GROUPS, "uni")
ROUNDING = 0.002  # scores may have been rounded to three decimals before they were written


class Figures(Entry, total=False):
    """Scores with standard errors; Uni = Spec + Vers lies in [0, 2]."""

    spec: Fraction
    spec_se: Error
    vers: Fraction
    vers_se: Error
    knowledge: Fraction
    knowledge_se: Error
    reasoning: Fraction
    reasoning_se: Error
    instruction: Fraction
    instruction_se: Error
    uni: Annotated[float, Read(number), between(0, 2), Missing(nan)]
    uni_se: Error


class FlipCount(Entry, total=False):
    """Items that went from right to wrong and back between two models, of how many.

    Attributes:
        p: two-sided p of McNemar's exact test.
    """

    right_to_wrong: Required[int]
    wrong_to_right: Required[int]
    items: Required[int]
    p: Required[float]


def uni_is_the_sum(figures: Figures) -> Figures:
    total, uni = figures["spec"] + figures["vers"], figures["uni"]
    if math.isfinite(total) and math.isfinite(uni) and abs(total - uni) > ROUNDING:
        raise ValueError(f"has a `uni` of {uni:g}, but spec + vers is {total:g}")
    return figures


Scores = Annotated[Figures, Check(uni_is_the_sum)]
