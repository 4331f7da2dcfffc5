"""Trials: train a region from the base, score it, put the base back."""

from .workbench import TrialData, Workbench

__all__ = ["TrialData", "Workbench"]
