"""The data of a run: which files there are, how they are read, and digests of what they hold."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ..data import read_examples, read_rows
from ..data.chat import ThinkingChoice
from ..data.faults import OnBadRow
from ..data.formats import Examples
from ..data.library import is_hidden, is_hub_id, split_of
from ..errors import CofituneError
from ..scoring import Suite, read_suite


@dataclass(frozen=True)
class TrialData:
    """Files of a run: the parts of the speciality and of the versatility suite, and their limits.

    Attributes:
        train, valid, test: data files, folders or ids of the hub, see data.read_rows.
        versatility_valid, versatility_test: folders or YAML files with the groups knowledge, reasoning and instruction.
        max_length: longest row in tokens.
        limit: number of first rows of `train` that are used.
        versatility_limit: number of items of each versatility task that are used.
        metric: metric of the speciality; None chooses it from the data.
        versatility_generate: add the tasks that need generated text (IFEval).
        on_bad_row: "stop" or "skip", see data.faults.
        thinking: what becomes of thoughts, see data.chat.ThinkingChoice.
        date: the day that the chat template writes, YYYY-MM-DD; None: today.
    """

    train: str | None = None
    valid: str | None = None
    test: str | None = None
    versatility_valid: str | None = None
    versatility_test: str | None = None
    max_length: int = 512
    limit: int | None = None
    versatility_limit: int | None = None
    metric: str | None = None
    versatility_generate: bool = False
    on_bad_row: OnBadRow = "stop"
    thinking: ThinkingChoice = "auto"
    date: str | None = None

    def file(self, part: str) -> str:
        """Return the path of train, valid or test. Raises CofituneError where it is not set."""
        path = getattr(self, part)
        if path is None:
            raise CofituneError(f"No {part} data: set data.{part} to a data file, a folder or a hub id.")
        return path

    def examples(self, part: str) -> Examples:
        """Read the rows of train, shortened to `limit`, or of valid. Raises CofituneError for an unusable file."""
        return read_examples(self.file(part), self.limit if part == "train" else None, self.on_bad_row)

    def suite(self, split: str) -> Suite:
        """Read the speciality and versatility tasks of "valid" or "test".

        Raises:
            CofituneError: files of this split are not set, or are unusable.
        """
        versatility = getattr(self, f"versatility_{split}")
        if versatility is None:
            raise CofituneError(
                f"No versatility tasks for {split}: set versatility.{split} to a folder with knowledge/, "
                "reasoning/ and instruction/."
            )
        speciality = {"path": self.file(split), "name": f"speciality-{split}", "limit": None}
        if self.metric:
            speciality["metric"] = self.metric
        return read_suite(versatility, speciality=speciality, limit=self.versatility_limit,
                          generate=self.versatility_generate or None, on_bad_row=self.on_bad_row)


DATA_FILES = ("train", "valid", "test", "versatility_valid", "versatility_test")


def data_digest(data: str | Path) -> str:
    """Return the digest of the content of a file or folder, or of the rows of a hub data set or a split of a folder.

    The result is "" if there is nothing of that name.
    """
    place, split = split_of(data)
    if split is None and not is_hub_id(place):
        return content_digest(Path(data))
    lines = [json.dumps(row.fields, default=str, sort_keys=True) for row in read_rows(data, on_bad_row="skip")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def content_digest(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's content, or of names and contents of all files in a folder but hidden ones.

    The result is "" if there is nothing at `path`.
    """
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    inside = sorted(file for file in path.rglob("*") if file.is_file() and not is_hidden(file.relative_to(path)))
    lines = [f"{file.relative_to(path)} {content_digest(file)}" for file in inside]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else ""
