"""Executor for the ranks of torchrun, which hold one model together: all of them do every job at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ...models.sharded import broadcast_object

Job = dict[str, Any]


class Ranks:
    """Executor of rank 0, which drives the search while the other ranks `follow`; `work` maps a job to its result."""

    slots = 1

    def __init__(self, work: Callable[[Job], Job]):
        self._work, self._whole = work, True

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Job]]:
        for job in jobs:
            broadcast_object(job)
            try:
                result = self._work(job)
            except BaseException:
                self._whole = False  # the other ranks meet the same error, or torchrun stops them
                raise
            yield job, result

    def close(self) -> None:
        if self._whole:
            broadcast_object(None)


def follow(work: Callable[[Job], Job]) -> None:
    """Run the jobs that rank 0 sends until it closes its executor."""
    while (job := broadcast_object(None)) is not None:
        work(job)
