"""Spec, Vers and Uni: how well a model does its speciality, and what it kept of everything else."""

from .answers import answer_scores
from .bootstrap import resampled_figures, resampled_together
from .results import ItemScore, Score, SuiteScores, paired_difference
from .score import score_suite, score_task, suite_tokens
from .suite import GROUPS, VERSATILITY, Suite, read_suite
from .tasks import ChoiceItem, ContinuationItem, Task, read_task

__all__ = [
    "GROUPS",
    "VERSATILITY",
    "ChoiceItem",
    "ContinuationItem",
    "ItemScore",
    "Score",
    "Suite",
    "SuiteScores",
    "Task",
    "answer_scores",
    "paired_difference",
    "read_suite",
    "read_task",
    "resampled_figures",
    "resampled_together",
    "score_suite",
    "score_task",
    "suite_tokens",
]
