"""Spec, Vers and Uni: scores of a model's speciality, and of the versatility it has kept."""

from .answers import answer_scores
from .bootstrap import resampled_figures, resampled_score, resampled_together
from .drift import BaseStates, base_states
from .generation import generate_texts, generation_score
from .harness import harness_scores
from .metrics import DriftItem, FollowedItem, GeneratedItem
from .results import ItemScore, Score, SuiteScores, paired_difference
from .score import choose_drift_rows, score_suite, score_task, scored_tokens
from .signal import Signal, score_signal, signal_tasks
from .suite import GROUPS, VERSATILITY, Suite, read_suite, tasks_to_write
from .tasks import ChoiceItem, ContinuationItem, InstructionItem, Task, needs_packages, read_task

__all__ = [
    "GROUPS",
    "VERSATILITY",
    "BaseStates",
    "ChoiceItem",
    "ContinuationItem",
    "DriftItem",
    "FollowedItem",
    "GeneratedItem",
    "InstructionItem",
    "ItemScore",
    "Score",
    "Signal",
    "Suite",
    "SuiteScores",
    "Task",
    "answer_scores",
    "base_states",
    "choose_drift_rows",
    "generate_texts",
    "generation_score",
    "harness_scores",
    "needs_packages",
    "paired_difference",
    "read_suite",
    "read_task",
    "resampled_figures",
    "resampled_score",
    "resampled_together",
    "score_signal",
    "score_suite",
    "score_task",
    "scored_tokens",
    "signal_tasks",
    "tasks_to_write",
]
