"""Spec, Vers and Uni: scores of a model's speciality, and of the versatility it has kept."""

from .answers import answer_scores
from .bootstrap import resampled_figures, resampled_score, resampled_together
from .drift import BaseStates, base_states, with_drifts
from .flips import Flips, mcnemar, score_flips, suite_flips
from .generation import generate_texts, generation_score
from .harness import harness_scores
from .metrics import DriftItem, FollowedItem, GeneratedItem
from .pairs import PairedTask, pair_tasks, paired_suites, pairs_entry
from .resolution import (
    Resolution,
    count_items,
    difference_error,
    items_needed,
    smallest_difference,
    suite_resolution,
)
from .results import DRIFTS, ItemScore, Score, SuiteScores, paired_difference
from .score import choose_drift_rows, score_suite, score_task, scored_tokens, without_refused
from .signal import DRIFT_ROWS, Signal, score_signal, signal_tasks
from .suite import GROUPS, VERSATILITY, Suite, read_suite, tasks_to_write
from .tasks import ChoiceItem, ContinuationItem, InstructionItem, Task, needs_packages, read_task

__all__ = [
    "DRIFTS",
    "DRIFT_ROWS",
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
    "PairedTask",
    "Resolution",
    "Score",
    "Signal",
    "Suite",
    "SuiteScores",
    "Task",
    "answer_scores",
    "base_states",
    "choose_drift_rows",
    "count_items",
    "difference_error",
    "generate_texts",
    "generation_score",
    "harness_scores",
    "items_needed",
    "mcnemar",
    "needs_packages",
    "pair_tasks",
    "paired_difference",
    "paired_suites",
    "pairs_entry",
    "read_suite",
    "read_task",
    "resampled_figures",
    "resampled_score",
    "resampled_together",
    "score_flips",
    "score_signal",
    "score_suite",
    "score_task",
    "scored_tokens",
    "signal_tasks",
    "smallest_difference",
    "suite_flips",
    "suite_resolution",
    "tasks_to_write",
    "with_drifts",
    "without_refused",
]
