"""Curves of speciality against versatility, their frontiers, and verdicts with intervals: numpy on plain data."""

from .curves import curves_and_verdicts

__all__ = ["curves_and_verdicts"]
