"""Where the nodes of a search run. Executors move jobs and results, which are plain data, and know nothing of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol

from .in_process import InProcess

__all__ = ["Executor", "ExecutorName", "InProcess"]

ExecutorName = Literal["in-process", "processes", "ray"]


class Executor(Protocol):
    """slots: how many jobs run at once."""

    slots: int

    def run(self, jobs: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Pairs of a job and its result as they end, in any order; a job is asked for when a slot is free for it, so
        that it may depend on what has ended. Raises CofituneError when a job fails."""

    def close(self) -> None: ...
