"""Executors run the jobs of a search or a comparison; jobs and results are plain data that they only pass on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol

from .in_process import InProcess

__all__ = ["Executor", "ExecutorName", "InProcess"]

ExecutorName = Literal["in-process", "processes", "ray"]


class Executor(Protocol):
    """Runs jobs; `slots` is the number that run at once."""

    slots: int

    def run(self, jobs: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield pairs of a job and its result as they end, in any order.

        The next job is taken from `jobs` only when a slot is free, so that it may depend on earlier results.

        Raises:
            CofituneError: a job failed.
        """

    def close(self) -> None: ...
