"""Spec, Vers and Uni: scores of a model's speciality, and of the versatility it has kept."""

from .answers import answer_scores
from .bootstrap import resampled_figures, resampled_score, resampled_together
from .drift import BaseStates, base_states, with_drifts
from .flips import Flips, mcnemar, score_flips, suite_flips
from .generation import generate_texts, generation_score
from .harness import harness_scores
from .metrics import DriftItem, FollowedItem, GeneratedItem
from .resolution import (
    Resolution,
    count_items,
    difference_error,
    items_needed,
    smallest_difference,
    suite_resolution,
)
from .results import DRIFTS, ItemScore, Score, SuiteScores, paired_difference
from .score import drift_rows, score_suite, score_task, suite_tokens
from .suite import GROUPS, VERSATILITY, Suite, read_suite, tasks_to_write
from .tasks import ChoiceItem, ContinuationItem, InstructionItem, Task, needs_packages, read_task

__all__ = [
    "DRIFTS",
    "GROUPS",
    "VERSATILITY",
    "BaseStates",
    "ChoiceItem",
    "ContinuationItem",
    "DriftItem",
    "Flips",
    "FollowedItem",
    "GeneratedItem",
    "InstructionItem",
    "ItemScore",
    "Resolution",
    "Score",
    "Suite",
    "SuiteScores",
    "Task",
    "answer_scores",
    "base_states",
    "count_items",
    "difference_error",
    "drift_rows",
    "generate_texts",
    "generation_score",
    "harness_scores",
    "items_needed",
    "mcnemar",
    "needs_packages",
    "paired_difference",
    "read_suite",
    "read_task",
    "resampled_figures",
    "resampled_score",
    "resampled_together",
    "score_flips",
    "score_suite",
    "score_task",
    "smallest_difference",
    "suite_flips",
    "suite_resolution",
    "suite_tokens",
    "tasks_to_write",
    "with_drifts",
]
