"""Texts of flipped items, for a run's and a comparison's tables."""

from __future__ import annotations

from typing import Any

GROUPS = {"vers": "Vers", "speciality": "Speciality", "knowledge": "Knowledge", "reasoning": "Reasoning",
          "instruction": "Instruction"}


def counts(entry: dict[str, Any]) -> str:
    """Format the items lost and gained: −12 +8, with a decimal where a mean is no whole number."""
    lost, gained = (f"{entry[way]:.1f}".removesuffix(".0") for way in ("right_to_wrong", "wrong_to_right"))
    return f"−{lost} +{gained}"


def p_value(p: float) -> str:
    """Format a p-value: two decimals, more below 0.01, <0.0001 at the least."""
    return "<0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"
