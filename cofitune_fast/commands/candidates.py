"""Models to evaluate: the data by their tokenizer first, then the weights and the scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..config import Config
from ..data.chat import with_options
from ..regions import load_delta, read_delta
from ..scoring import (
    VERSATILITY,
    PairedTask,
    Score,
    Suite,
    Task,
    generation_score,
    harness_scores,
    needs_packages,
    pair_tasks,
    pairs_entry,
    read_task,
    score_task,
    suite_resolution,
    tasks_to_write,
    with_drifts,
    without_refused,
)
from ..trials import DataLook
from .setup import look_before, make_workbench


@dataclass(frozen=True)
class Evaluation:
    """Options of `cofitune evaluate` that decide what is scored."""

    split: str
    limit: int | None
    generate: bool
    max_new_tokens: int | None
    harness: list[str]
    against_base: bool

    def looked_at(self, settings: Config, say: Callable[[str], None]) -> Candidate:
        """Read the data with the tokenizer of a model, before its weights."""
        path, versatility = (getattr(section, self.split) for section in (settings.data, settings.versatility))
        to_write = tasks_to_write(path, versatility, limit=self.limit, versatility_limit=settings.versatility.limit,
                                  on_bad_row=settings.data.on_bad_row) if self.generate else []
        if self.harness:
            needs_packages("--harness", "lm_eval")
        region = read_delta(settings.delta).region if settings.delta else None
        looks = look_before(settings, [self.split], [self.split] if versatility else [], say=say)
        tokenizer = with_options(looks[0].outline.tokenizer, thinking=settings.data.thinking, date=settings.data.date)
        suite = looks[0].suites[self.split] if versatility else None
        if suite is None:
            tasks = {"speciality": [replace(read_task(path, limit=self.limit, metric=settings.data.metric,
                                                      on_bad_row=settings.data.on_bad_row), name=str(path))]}
        else:
            tasks = dict(suite.groups())
        candidate = Candidate(self, settings, region, looks, tokenizer, tasks, to_write)
        if settings.data.on_bad_row == "skip":
            candidate.leave_out_refused(tokenizer)
        return candidate


@dataclass
class Candidate:
    """A model to score, of which only the tokenizer is loaded so far. tasks: by group."""

    call: Evaluation
    settings: Config
    region: str | None
    looks: list[DataLook]
    tokenizer: Any
    tasks: dict[str, Sequence[Task]]
    to_write: list[Task]

    @property
    def is_suite(self) -> bool:
        return VERSATILITY[0] in self.tasks

    @property
    def name(self) -> str:
        model, delta = self.settings.model, self.settings.delta
        path = f"{model.path}/{model.gguf_file}" if model.gguf_file else model.path
        return f"{path} + {delta}" if delta else path

    def leave_out_refused(self, tokenizer: Any) -> None:
        self.tasks = {group: [without_refused(task, tokenizer) for task in tasks]
                      for group, tasks in self.tasks.items()}

    def take_common_rows(self, other: Candidate) -> None:
        """Leave out, of both, the rows that either chat template refuses, where bad rows are to be skipped."""
        if self.settings.data.on_bad_row == "skip":
            self.leave_out_refused(other.tokenizer)
            other.tasks = self.tasks

    def reads_like(self, other: Candidate) -> bool:
        """True if both models have the same tokens, chat template and limit of tokens."""
        one, two = self.looks[0].outline, other.looks[0].outline
        return (one.positions == two.positions and one.tokenizer.get_vocab() == two.tokenizer.get_vocab()
                and one.tokenizer.chat_template == two.tokenizer.chat_template)

    def notes(self, other: Candidate, pairs: Mapping[str, Mapping[str, PairedTask]]) -> list[str]:
        """Say in sentences what differs between the two beside the weights."""
        one, two = self.looks[0].outline.tokenizer, other.looks[0].outline.tokenizer
        found = []
        if one.get_vocab() != two.get_vocab():
            found.append("The two models have different tokenizers; each reads the rows by its own.")
        if one.chat_template != two.chat_template:
            found.append("The two models have different chat templates; each renders the rows by its own.")
        by_byte = [name for tasks in pairs.values() for name, pair in tasks.items() if pair.per_byte]
        if by_byte:
            found.append(f"Their tokens differ, so likelihoods are compared per byte of the answers: "
                         f"{', '.join(by_byte)}.")
        return found

    def score(self) -> tuple[dict[str, Any], dict[str, dict[str, Score]]]:
        """Load the model and score it; returns the content of the output, and the scores by group and task."""
        call, settings = self.call, self.settings
        bench = make_workbench(settings, self.region, looks=self.looks)
        base, before = {}, None
        if self.is_suite:
            bench.take_suites({call.split: Suite(**self.tasks)})
        if settings.delta:
            base = bench.all_base_states(call.split, settings.versatility.drift_rows) if self.is_suite else {}
            before = bench.score(call.split) if call.against_base else None
            load_delta(bench.model, settings.delta, base_fingerprint=bench.base.fingerprint)
        if self.is_suite:
            scores = with_drifts(bench.score(call.split), bench.model, base)
            others = [] if before is None else [before]
            content = {**scores.to_dict(), "resolution": [suite_resolution(scores, others, figure).to_dict()
                                                          for figure in ("vers", "uni")]}
            found = {group: dict(tasks) for group, tasks in scores.tasks.items()}
            if before is not None:
                content["against_base"] = {
                    "models": [self.name, settings.model.path], "notes": [],
                    **pairs_entry(pair_tasks(scores.tasks, before.tasks, self.tasks, same_rows=True))}
        else:
            ((task,),) = self.tasks.values()
            found = {"speciality": {task.name: score_task(bench.model, bench.tokenizer, task)}}
            content = {"tasks": {"speciality": {task.name: found["speciality"][task.name].to_dict()}}}
        if self.to_write:
            written = {task.name: generation_score(bench.model, bench.tokenizer, task,
                                                   max_new_tokens=call.max_new_tokens) for task in self.to_write}
            content["generation"] = {task.name: _generation(written[task.name], task) for task in self.to_write}
            found["generation"], self.tasks = written, {**self.tasks, "generation": self.to_write}
        if call.harness:
            content["harness"] = harness_scores(
                bench.model, bench.tokenizer, call.harness, limit=call.limit or settings.versatility.limit,
                max_new_tokens=call.max_new_tokens,
            )
        return content, found


def _generation(score: Score, task: Task) -> dict[str, Any]:
    """Convert a score of generated text; `left_out` counts items that cannot be checked on this machine."""
    return {**score.to_dict(), "left_out": len(task.items) - score.n}
