"""Trials: train a region from the base, score it, restore the base."""

from .data import TrialData
from .job import clean_node, run_job
from .look import DataLook, read_data
from .setup import TrialSetup
from .workbench import BaseLost, Workbench

__all__ = ["BaseLost", "DataLook", "TrialData", "TrialSetup", "Workbench", "clean_node", "read_data", "run_job"]
