"""Workbench: one base model with its data and tasks, on which regions are tried one after another.

The model is loaded once. A trial trains a region in place, scores the result and restores the base's bytes, which is
proven by hash. So every trial starts from the same base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ..anchor import Anchor, AnchorSettings, ReferenceSettings, TaskRow, open_anchor, task_rows
from ..anchor.writing import given_texts, prompts_of_texts, thinking_for
from ..data import Encoded, batches, encode_examples, pad_token_id
from ..data.chat import with_options, writes_date
from ..data.formats import Message
from ..data.look import refuse_unknown_tokens
from ..errors import CofituneError
from ..importance import Importance, compute_importance
from ..memory.cached_prefix import CachedPrefix, open_prefix
from ..models import LoadedModel, dtype_name
from ..models.fingerprint import base_digests, combine_digests, element_count, named_parameters, tensor_digests
from ..regions import BaseInfo, Layout, Region, Trainable, detach_parts, resolve_layout, restore
from ..scoring import (
    DRIFTS,
    BaseStates,
    Signal,
    Suite,
    SuiteScores,
    base_states,
    choose_drift_rows,
    score_signal,
    score_suite,
    scored_tokens,
    signal_tasks,
    without_refused,
)
from ..training import MemorySettings, Schedule, TrainOptions, TrainResult, evaluates, train_region
from .data import DATA_FILES, TrialData, data_digest


class BaseLost(CofituneError):
    """The base's bytes could not be restored, so nothing may be trained from the model's current weights."""


class Base:
    """A base model, loaded once, with its fingerprint, its layout and the digests of its tensors.

    Attributes:
        digests: SHA-256 of each tensor as it is loaded.
        info: name, fingerprint and dtype of the full-precision base, also for a quantised model.
    """

    def __init__(self, loaded: LoadedModel):
        self.model, self.tokenizer, self.source = loaded.model, loaded.tokenizer, loaded.source
        self.digests = tensor_digests(self.model)
        fingerprint = combine_digests(base_digests(self.model, self.digests))
        self.info = BaseInfo(self.source, fingerprint, dtype_name(self.model))
        self.pad_token_id = pad_token_id(self.tokenizer)
        self.benches: dict[TrialData, Workbench] = {}

    @cached_property
    def layout(self) -> Layout:
        """The roles of the model's weights. Raises CofituneError if they are not known."""
        return resolve_layout(self.model)


class Workbench:
    """A base model with its training rows and its suites, each made when first asked for.

    loaded: a loaded model, or the base of another workbench, which then has both sets of data.
    """

    def __init__(self, loaded: LoadedModel | Base, data: TrialData):
        shared = loaded if isinstance(loaded, Base) else Base(loaded)
        self._shared, self.data = shared, data
        self.model, self.source = shared.model, shared.source
        self.tokenizer = with_options(shared.tokenizer, thinking=data.thinking, date=data.date)
        self.digests, self.base = shared.digests, shared.info
        self.pad_token_id = shared.pad_token_id
        shared.benches.setdefault(data, self)
        self._anchors: dict[AnchorSettings, Anchor] = {}
        self._suites: dict[str, Suite] = {}
        self._suite_tokens: dict[str, tuple[int, int]] = {}
        self._base_states: dict[tuple[str, int, str], BaseStates | None] = {}

    @property
    def layout(self) -> Layout:
        """As in `Base`: needed for regions of a part of the model, not for all of it or to score."""
        return self._shared.layout

    @property
    def roles(self) -> dict[str, str | list[str]]:
        """Roles that the user gave (`load_model(roles=...)`); what a region means depends on them."""
        return dict(getattr(self.model, "cofitune_roles", None) or {})

    @cached_property
    def train_rows(self) -> list[Encoded]:
        """Encoded training rows.

        Raises:
            CofituneError: no training file is named, or it is unusable.
        """
        return self._encoded("train")

    @cached_property
    def valid_rows(self) -> list[Encoded]:
        """Encoded validation rows, for evaluations during training."""
        return self._encoded("valid")

    def _encoded(self, part: str) -> list[Encoded]:
        rows = encode_examples(self.data.examples(part), self.tokenizer, self.data.max_length, self.data.on_bad_row)
        refuse_unknown_tokens(rows, self.tokenizer, self._embedding_rows)
        return rows

    @property
    def _embedding_rows(self) -> int:
        return self.model.get_input_embeddings().weight.shape[0]

    def take_rows(self, part: str, rows: list[Encoded]) -> None:
        """Take rows that were encoded before the model was loaded, as `train_rows` or `valid_rows`.

        Args:
            part: "train" or "valid".

        Raises:
            CofituneError: a row has a token beyond the model's embedding.
        """
        refuse_unknown_tokens(rows, self.tokenizer, self._embedding_rows)
        vars(self)[f"{part}_rows"] = rows

    def take_suites(self, suites: Mapping[str, Suite]) -> None:
        """Take suites that were read before the model was loaded, by split."""
        self._suites |= {split: self._usable(suite) for split, suite in suites.items()}

    def _usable(self, suite: Suite) -> Suite:
        """Leave out rows that the chat template refuses, if bad rows are to be skipped."""
        if self.data.on_bad_row == "stop":
            return suite
        groups = {group: [without_refused(task, self.tokenizer) for task in tasks]
                  for group, tasks in suite.groups().items()}
        return Suite(**groups, notes=suite.notes)

    @cached_property
    def data_digests(self) -> dict[str, str]:
        """SHA-256 (hex) of the content of each data file and folder, by the name of its setting."""
        return {key: data_digest(value) for key, value in vars(self.data).items()
                if key in DATA_FILES and value is not None}

    @cached_property
    def written_date(self) -> str | None:
        """Day that the chat template writes into each row, YYYY-MM-DD; None if it writes none."""
        return (self.data.date or str(date.today())) if writes_date(self.tokenizer) else None

    @property
    def row_settings(self) -> dict[str, str]:
        """Settings that decide the rows beside files and limits, for identities; defaults are left out, so that
        folders of earlier versions go on.
        """
        own, default = self.data, TrialData()
        found = {key: getattr(own, key) for key in ("on_bad_row", "thinking")
                 if getattr(own, key) != getattr(default, key)}
        return {**found, **({"date": self.written_date} if self.written_date else {})}

    @cached_property
    def total_parameters(self) -> int:
        return sum(element_count(parameter) for _, parameter in named_parameters(self.model))

    def suite(self, split: str) -> Suite:
        """Return the speciality and versatility tasks of `split` ("valid" or "test").

        Raises:
            CofituneError: files of this split are not set, or are unusable.
        """
        if split not in self._suites:
            self._suites[split] = self._usable(self.data.suite(split))
        return self._suites[split]

    def suite_tokens(self, split: str) -> tuple[int, int]:
        """Count the tokens that scoring `split` computes, see `scoring.scored_tokens`; done once per split."""
        if split not in self._suite_tokens:
            self._suite_tokens[split] = scored_tokens(self.model, self.tokenizer, self.suite(split).tasks())
        return self._suite_tokens[split]

    def signal_tokens(self, split: str, drift_rows: int) -> tuple[int, int, int]:
        """Count the tokens that `signal` computes: (tokens of the speciality, tokens of the drift, answer tokens)."""
        tasks = signal_tasks(self.suite(split).speciality)
        tokens, answers = scored_tokens(self.model, self.tokenizer, tasks)
        rows = choose_drift_rows(self.model, self.tokenizer, self.suite(split), drift_rows) if drift_rows else []
        return (tokens, sum(len(row.input_ids) for row in rows),
                answers + sum(len(row.input_ids) - row.response_start for row in rows))

    def score(
        self, split: str, on_task: Callable[[str, Any], None] | None = None, *, region: Region | None = None,
        memory: MemorySettings | None = None,
    ) -> SuiteScores:
        """Score the model's current weights on the tasks of `split`.

        Args:
            region: everything that was changed since the base. With `memory`, the layers below it are computed once per
                base and split, and their output is cached. The scores are the same to the bit.
        """
        suite = self.suite(split)
        with self._scoring_prefix(split, region, memory) as prefix:
            return score_suite(self.model, self.tokenizer, suite, prefix=prefix, on_task=on_task)

    def signal(
        self, split: str, drift_rows: int, *, region: Region | None = None, memory: MemorySettings | None = None
    ) -> Signal:
        """Measure the early signal of the model's current weights.

        Args:
            drift_rows: see `base_states`; 0 leaves the drift out. They must have been computed before, on the base.
            region, memory: see `score`.
        """
        base, tasks = self.base_states(split, drift_rows), signal_tasks(self.suite(split).speciality)
        with self._scoring_prefix(split, region, memory) as prefix:
            return score_signal(self.model, self.tokenizer, tasks, base, prefix=prefix)

    @contextmanager
    def _scoring_prefix(
        self, split: str, region: Region | None, memory: MemorySettings | None
    ) -> Iterator[CachedPrefix | None]:
        prefix = None
        if region is not None and memory is not None:
            prefix, _ = open_prefix(self.model, region, self.digests, memory, self.suite_tokens(split)[0])
        with prefix or nullcontext():
            yield prefix

    def base_states(self, split: str, rows: int, group: str = "instruction") -> BaseStates | None:
        """Compute the base's states for the drift on at most `rows` responses of a group's tasks in the split, once.

        The model must hold the base's bytes.

        Returns:
            The states, or None if the split has no such responses.

        Raises:
            CofituneError: the model holds other bytes.
        """
        key = split, rows, group
        if key not in self._base_states:
            chosen = choose_drift_rows(self.model, self.tokenizer, self.suite(split), rows, group)
            if chosen:
                self._require_base("The drift is from the base")
            like = next(filter(None, self._base_states.values()), None)
            self._base_states[key] = base_states(self.model, chosen, self.pad_token_id, like=like) if chosen else None
        return self._base_states[key]

    def all_base_states(self, split: str, rows: int) -> dict[str, BaseStates]:
        """Compute the base's states for each KL of `scoring.DRIFTS` on at most `rows` responses each, by its name."""
        found = {name: self.base_states(split, rows, group) for name, group in DRIFTS.items()}
        return {name: states for name, states in found.items() if states is not None}

    def importance(
        self,
        region: Region | None = None,
        *,
        samples: int = 64,
        batch_size: int = 8,
        proxy: str = "kl_dropout",
        dropout: float = 0.003,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Importance:
        """Measure the importance of the units of `region` (None: all layers) on the first `samples` training rows."""
        rows = self.train_rows[:samples]
        stream = (batch for _, batch in batches(rows, self.pad_token_id, batch_size=batch_size, max_tokens=None))
        return compute_importance(
            self.model, stream, region, proxy=proxy, dropout=dropout, seed=seed, progress=progress,
            base=(self.base.model, self.base.fingerprint),
        )

    def anchor(self, settings: AnchorSettings) -> Anchor | None:
        """Return the anchor of the base; its texts are written now unless they are in the cache.

        The model must hold the base's bytes. The result is None if the weight is 0.

        Raises:
            CofituneError: the model holds other bytes, the prompts are unusable, or most texts are.
        """
        if settings.weight == 0:
            return None
        if settings not in self._anchors:
            self._require_base("The anchor's texts are the base's")
            self._anchors[settings] = open_anchor(self.model, self.tokenizer, settings, self.base.fingerprint,
                                                  self._anchor_prompts(settings))
        return self._anchors[settings]

    def task_rows(
        self, rows: Sequence[Encoded], reference: ReferenceSettings | None, token_filter: float | None = None
    ) -> list[TaskRow]:
        """Return training rows with what the base makes of them, see `anchor.task_rows`.

        The model must hold the base's bytes.

        Raises:
            CofituneError: the model holds other bytes, or the filter leaves no token.
        """
        self._require_base("The reference is the base")
        return task_rows(self.model, rows, self.pad_token_id, self.base.fingerprint, reference, token_filter)

    def anchor_tokens(self, settings: AnchorSettings) -> tuple[int, int]:
        """Count tokens and response tokens of all texts of an anchor, if each that is written has its maximum length.

        No text is written for it.
        """
        if settings.source == "rows":
            rows = given_texts(self.tokenizer, settings.read_rows(), texts=settings.texts, tokens=settings.tokens,
                               seed=settings.seed)
            responses = sum(len(row.input_ids) - row.response_start for row in rows)
            return sum(len(row.input_ids) for row in rows), responses
        written = responses = settings.texts * settings.tokens
        if settings.source == "free":
            return settings.texts + written, responses
        prompts = settings.read_prompts(self._anchor_prompts(settings))
        encoded = prompts_of_texts(self.tokenizer, prompts, settings.texts, settings.thinking)
        if thinking_for(self.tokenizer, settings.thinking) == "answer":
            written = settings.texts * (settings.thought_tokens + settings.tokens // 2)
        return sum(map(len, encoded)) + written, responses

    def _anchor_prompts(self, settings: AnchorSettings) -> list[list[Message]] | None:
        if settings.prompts != "task" or settings.source != "answers":
            return None
        return [row.prompt for row in self.data.examples("train")]

    def with_data(self, data: TrialData) -> Workbench:
        """Return a workbench of the same base with other data, made once for each."""
        return self._shared.benches.get(data) or Workbench(self._shared, data)

    def schedule(self, training: Mapping[str, Any], *, full: bool = False) -> Schedule:
        """Resolve the schedule of a training on this model and these rows."""
        return Schedule.of(training, self.model, len(self.train_rows), full=full)

    def train(
        self, region: Trainable, output_dir: str | Path, training: Mapping[str, Any] | None = None,
        options: TrainOptions = TrainOptions(),  # noqa: B008  (frozen)
        *, rows: Sequence[Encoded] | None = None, **watching: Any,
    ) -> TrainResult:
        """Train `region` in place from the model's current weights, see `training.train_region`.

        Evaluations that `training` asks for use the validation rows.

        Args:
            rows: rows to train on, by default the training rows.
            watching: callbacks and other arguments of `training.train_region`.
        """
        return train_region(
            self.model, region, self.train_rows if rows is None else rows, output_dir, training, options,
            base=self.base, pad_token_id=self.pad_token_id,
            eval_rows=self.valid_rows if evaluates(training or {}) else None, **watching,
        )

    @contextmanager
    def trial(self, region: Region) -> Iterator[dict[str, Tensor]]:
        """Restore the base's bytes of `region` after the block, and prove it by hash.

        Yields the base's tensors of the region, by name.

        Raises:
            BaseLost: the hashes differ after the block.
        """
        kept = {name: parameter.detach().clone() for name, parameter in region.parameters(self.model)}
        try:
            yield kept
        finally:
            restore(self.model, kept)
            detach_parts(self.model)
            for parameter in self.model.parameters():
                parameter.grad = None
                parameter.requires_grad_(False)
            if tensor_digests(self.model) != self.digests:
                raise BaseLost("The base model's bytes could not be put back after a trial; load it anew.")

    def masks(self, importance: Importance, region: Region, preset: str) -> dict[str, Tensor]:
        """Make the soft masks of `region`.

        Raises:
            CofituneError: the importance was measured on another base.
        """
        importance.check(self.base.fingerprint, self.base.model)
        return importance.masks(self.model, region, preset=preset)

    def _require_base(self, what: str) -> None:
        if tensor_digests(self.model) != self.digests:
            raise CofituneError(f"{what}, but the model holds other bytes; load it anew.")

