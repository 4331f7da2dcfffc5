"""Pool of workers: assigns jobs, and retries the job of a worker that died."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from ...errors import CofituneError

Job = dict[str, Any]


class PoolWorker(ABC):
    """One worker. It first reports that it is ready, and then answers every job; see `trials.worker`."""

    @abstractmethod
    def give(self, job: Job) -> None: ...

    @abstractmethod
    def answer(self) -> dict[str, Any] | None:
        """Return the answer that has arrived, or None if the worker died instead."""

    @abstractmethod
    def death(self) -> str:
        """Describe how the worker died and where to read more; the text ends a sentence."""

    @abstractmethod
    def kill(self) -> None: ...


class WorkerPool(ABC):
    """Executor with `slots` workers, started when first needed.

    A job whose worker dies goes to the next free worker, up to `retries` times, and resumes from the node's checkpoint.
    Jobs are given only to workers that have reported ready. So a worker that cannot be restarted, for example because
    its machine is gone, delays no job.
    """

    def __init__(self, slots: int, retries: int):
        self.slots, self.retries = slots, retries
        self._idle: list[PoolWorker] = []
        self._starting: set[PoolWorker] = set()
        self._busy: dict[PoolWorker, Job] = {}

    @abstractmethod
    def _start(self) -> PoolWorker: ...

    @abstractmethod
    def _wait(self, workers: Sequence[PoolWorker]) -> Iterable[PoolWorker]:
        """Wait until at least one worker has an answer or is dead, and return those workers."""

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Job]]:
        """Yield jobs and results as they end; an error, also one in the caller, stops the other jobs.

        Args:
            jobs: the next one is taken when a worker can run it, after the earlier results were consumed.

        Raises:
            CofituneError: a job reports one, or its worker died more than `retries` times.
            RuntimeError: anything else went wrong in a worker, with its traceback.
        """
        waiting, deaths, source = deque(), Counter(), iter(jobs)
        try:
            while True:
                waiting.extend(islice(source, self.slots - len(self._busy) - len(waiting)))
                if not waiting and not self._busy:
                    return
                while waiting and self._idle:
                    self._give(self._idle.pop(), waiting.popleft())
                for _ in range(len(waiting) - len(self._starting)):
                    self._starting.add(self._start())
                for worker in self._wait([*self._busy, *self._starting]):
                    job = self._busy.pop(worker, None)
                    self._starting.discard(worker)
                    answer = worker.answer()
                    if answer is not None:
                        self._idle.append(worker)
                        result = _result(answer)
                        if job is not None:
                            yield job, result
                        continue
                    self._bury(worker)
                    name = job["id"] if job else None
                    deaths[name] += 1
                    if deaths[name] > self.retries:
                        what = f"The node {name} could not be finished" if job else "No worker could be started"
                        raise CofituneError(f"{what}: its process died {deaths[name]} times, the last time "
                                            f"{worker.death()}.")
                    if job is not None:
                        waiting.appendleft(job)
        except BaseException:
            self._stop()
            raise

    def close(self) -> None:
        self._stop()

    def _give(self, worker: PoolWorker, job: Job) -> None:
        self._busy[worker] = job
        worker.give(job)

    def _bury(self, worker: PoolWorker) -> None:
        worker.kill()

    def _stop(self) -> None:
        for worker in [*self._idle, *self._starting, *self._busy]:
            self._bury(worker)
        self._idle, self._starting, self._busy = [], set(), {}


def _result(answer: dict[str, Any]) -> Any:
    if "error" in answer:
        raise CofituneError(answer["error"])
    if "failure" in answer:
        raise RuntimeError(f"A worker of the search failed:\n{answer['failure']}")
    return answer.get("result")
