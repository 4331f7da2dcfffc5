"""A look at all data of a run before any weights are loaded: what was understood, is unusable, stands twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from ..data.chat import with_options
from ..data.faults import Faults
from ..data.formats import Example
from ..data.look import (
    FileLook,
    Pairs,
    Text,
    counted,
    places,
    read_file,
    repeated,
    shared,
    text_of,
    unknown_tokens_error,
)
from ..errors import CofituneError
from ..models.loading import Outline
from ..scoring import Suite
from ..scoring.tasks import ChoiceItem, ContinuationItem, Item, read_task
from .data import TrialData
from .workbench import Workbench

PARTS = ("train", "valid", "test")
SPLITS = ("valid", "test")


@dataclass
class Overlap:
    """Rows that two parts of the data have in common; `part` should be new to a model that has learnt `other`."""

    part: str
    other: str
    pairs: Pairs

    @property
    def sentence(self) -> str:
        exact, prompt = self.pairs
        same = f", {len(exact):,} of them with the same response" if exact else ""
        return (f"{counted(len(prompt), 'prompt')} of {self.part} also in {self.other}{same} "
                f"(the first: {' = '.join(prompt[0])})")


@dataclass
class DataLook:
    """All data of a run as they were understood, with the rows that were encoded for it.

    Attributes:
        parts: files that will be used; others are read for what they have in common with these.
        outline: the model's tokenizer and configuration, once the rows are encoded.
        tokenizer: the outline's, with what the run wants of thoughts and the date.
        files: by part: train, valid, test.
        suites: the tasks of valid and test, with the versatility tasks.
        problems: by part ("train", "versatility.valid", ...) what forbids its use.
        twice: rows inside train that repeat an earlier one.
        overlaps: what train, valid, test and the versatility tasks have in common.
    """

    data: TrialData
    parts: tuple[str, ...] = PARTS
    outline: Outline | None = None
    tokenizer: Any = None
    files: dict[str, FileLook] = field(default_factory=dict)
    suites: dict[str, Suite] = field(default_factory=dict)
    problems: dict[str, CofituneError] = field(default_factory=dict)
    twice: Pairs | None = None
    overlaps: list[Overlap] = field(default_factory=list)

    def require(self, *parts: str) -> None:
        """Raise the first problem of these parts, if there is one; by default of all."""
        for part in parts or self.problems:
            if part in self.problems:
                raise self.problems[part]

    def encode(self, outline: Outline, *, evaluated: bool = False) -> None:
        """Encode the files that will be used, and collect what the model cannot take.

        Args:
            evaluated: encode the valid rows as training rows, for evaluations during training.
        """
        self.outline = outline
        self.tokenizer = with_options(outline.tokenizer, thinking=self.data.thinking, date=self.data.date)
        for part in self.parts:
            if part in self.files and (self.files[part].examples or self.files[part].faults):
                cut = part == "train" or (part == "valid" and evaluated)
                try:
                    self.files[part].encode(
                        self.tokenizer, self.data.max_length if cut else None, vocabulary=outline.vocabulary,
                        positions=outline.positions, trained=cut)
                    self._check(self.files[part], cut)
                except CofituneError as error:
                    self.problems[part] = error

    def _check(self, file: FileLook, cut: bool) -> None:
        self._settle(file)
        if file.unknown:
            raise unknown_tokens_error(file.unknown)
        if cut and file.beyond and self.outline.has_position_table:
            raise CofituneError(
                f"{counted(len(file.beyond), 'row')} of {file.path}, cut at data.max_length {self.data.max_length}, "
                f"would have more tokens than the {self.outline.positions:,} positions that the model has vectors for "
                f"({places(file.beyond)}); set data.max_length to at most {self.outline.positions}.")

    def settle(self) -> None:
        """Take bad rows for problems where rows are read only, without `encode`."""
        for part in self.parts:
            if part in self.files:
                try:
                    self._settle(self.files[part])
                except CofituneError as error:
                    self.problems[part] = error

    @staticmethod
    def _settle(file: FileLook) -> None:
        if file.faults.on_bad_row == "stop" or not file.good:  # rows that are left out have their line in `sentences`
            file.faults.settle(file.rows, file.good)

    def compare(self) -> None:
        """Find rows that stand twice in train, and what the parts have in common."""
        texts = {part: file.texts for part, file in self.files.items()}
        if "train" in texts:
            self.twice = repeated(texts["train"])
        for split, suite in self.suites.items():
            texts[f"versatility.{split}"] = [text for group, tasks in suite.groups().items() if group != "speciality"
                                             for task in tasks for text in map(_text_of_item, task.items)]
        for (other, learnt), (part, new) in combinations(texts.items(), 2):
            if part in PARTS or other == "train":
                pairs = shared(new, learnt)
                if pairs.prompt:
                    self.overlaps.append(Overlap(part, other, pairs))

    def hand_over(self, bench: Workbench) -> None:
        """Give the rows and suites to a workbench of the same base, so that nothing is read or encoded twice.

        Raises:
            CofituneError: a row has a token beyond the embedding of the loaded model.
        """
        bench = bench.with_data(self.data)
        for part, file in self.files.items():
            if file.encoded and file.max_length is not None:
                bench.take_rows(part, file.encoded)
        bench.take_suites(self.suites)

    @property
    def sentences(self) -> list[str]:
        """Lines for a log: one per file that was encoded, and one per thing to know."""
        lines = [look.sentence for look in self.files.values() if look.encoded is not None]
        for part, look in self.files.items():
            if look.beyond and part not in self.problems:
                lines.append(f"{look.path}: {counted(len(look.beyond), 'row')} of more tokens than the "
                             f"{self.outline.positions:,} positions that the model was made for "
                             f"({places(look.beyond)})" + ("" if part == "train" else "; scoring cuts their ends"))
        return [*lines, *(overlap.sentence for overlap in self.overlaps)]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        outline = self.outline
        return {
            "model": None if outline is None else {
                "source": outline.source, "vocabulary": outline.vocabulary, "tokenizer": len(outline.tokenizer),
                "positions": outline.positions, "chat_template": bool(outline.tokenizer.chat_template),
            },
            "max_length": self.data.max_length,
            "files": {part: look.to_dict() for part, look in self.files.items()},
            "versatility": {split: [
                {"group": group, "task": task.name, "kind": task.kind, "items": len(task.items)}
                for group, tasks in suite.groups().items() if group != "speciality" for task in tasks
            ] for split, suite in self.suites.items()},
            "twice_in_train": self.twice.to_dict() if self.twice else None,
            "overlaps": [{"part": overlap.part, "other": overlap.other, **overlap.pairs.to_dict()}
                         for overlap in self.overlaps],
            "problems": {part: str(error) for part, error in self.problems.items()},
            "usable": not self.problems,
        }


def read_data(data: TrialData, parts: Sequence[str] = PARTS, suites: Sequence[str] = SPLITS) -> DataLook:
    """Read the data of a run, and collect what is wrong with them; `DataLook.encode` comes next.

    Files that are not in `parts` are read if they can be, only to see what they have in common with the others.

    Args:
        parts: files that will be used, of train, valid and test.
        suites: parts whose tasks are read, of valid and test, where versatility tasks are set.
    """
    look = DataLook(data, tuple(parts))
    for part in PARTS:
        if part in parts or getattr(data, part) is not None:
            try:
                look.files[part] = _read_part(data, part)
            except CofituneError as error:
                if part in parts:
                    look.problems[part] = error
    for split in suites:
        if getattr(data, f"versatility_{split}") is not None and getattr(data, split) is not None:
            try:
                look.suites[split] = data.suite(split)
            except CofituneError as error:
                if split not in look.files or not look.files[split].faults:  # else its bad rows are the error
                    look.problems[f"versatility.{split}"] = error
    look.compare()
    return look


def _read_part(data: TrialData, part: str) -> FileLook:
    """Read a file of examples, or for valid and test a file of another kind of task."""
    path = data.file(part)
    file = read_file(path, limit=data.limit if part == "train" else None, on_bad_row=data.on_bad_row)
    if part != "train" and not file.examples:
        try:
            task = read_task(path)
        except CofituneError:
            return file
        texts = list(map(_text_of_item, task.items))
        return FileLook(path, {task.kind: len(texts)}, len(texts), [], Faults(data.on_bad_row), texts=texts)
    return file


def _text_of_item(item: Item) -> Text:
    if isinstance(item, Example):
        return text_of(item)
    if isinstance(item, ChoiceItem):
        return Text(item.query.strip(), item.choices[item.gold].strip(), item.where)
    if isinstance(item, ContinuationItem):
        return Text(item.context.strip(), item.continuation.strip(), item.where)
    return Text(item.prompt.strip(), None, item.where)
