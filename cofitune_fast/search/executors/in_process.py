"""Executor that runs jobs one after another in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

Job = dict[str, Any]


class InProcess:
    """Runs jobs one after another in this process; `work` maps a job to its result."""

    slots = 1

    def __init__(self, work: Callable[[Job], Job]):
        self._work = work

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Job]]:
        for job in jobs:
            yield job, self._work(job)

    def close(self) -> None:
        pass
