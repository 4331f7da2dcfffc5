"""Worker processes on this machine: one per GPU, or a few that share its CPU cores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from ...errors import CofituneError
from ...trials import TrialSetup
from .pool import Job, PoolWorker, WorkerPool


class Processes(WorkerPool):
    """Executor with worker processes on this machine.

    A worker's output goes to `workers/N.log` in the search's folder.

    Args:
        workers: number of processes, by default one per GPU; required without a GPU, where they share the threads
            evenly unless OMP_NUM_THREADS is set.
        devices: values for CUDA_VISIBLE_DEVICES, by default all GPUs that this process sees. More workers than devices
            share them.

    Raises:
        CofituneError: there is no GPU and `workers` is not given.
    """

    def __init__(
        self, setup: TrialSetup, workers: int | None = None, devices: Sequence[str] | None = None, *, retries: int = 3
    ):
        devices = list(visible_gpus(setup) if devices is None else devices)
        workers = workers or len(devices)
        if not workers:
            raise CofituneError("There is no GPU here to give each worker one of its own: say how many workers share "
                                "the processors, --search.workers 2 for example.")
        super().__init__(workers, retries)
        self._setup = on_device(setup, "cuda") if devices else setup
        self._devices = devices
        self._places = list(range(workers))[::-1]  # numbers of the workers to start, the next one last
        self._threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, _cores() // workers))

    def _start(self) -> PoolWorker:
        place = self._places.pop()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                       "OMP_NUM_THREADS": self._threads}
        if self._devices:
            environment["CUDA_VISIBLE_DEVICES"] = self._devices[place % len(self._devices)]
        return _Process(self._setup, place, environment)

    def _bury(self, worker: PoolWorker) -> None:
        worker.kill()
        self._places.append(worker.place)

    def _wait(self, workers: Sequence[PoolWorker]) -> Iterable[PoolWorker]:
        by_pipe = {worker.answers: worker for worker in workers}
        return [by_pipe[pipe] for pipe in connection.wait(list(by_pipe))]


class _Process(PoolWorker):
    def __init__(self, setup: TrialSetup, place: int, environment: dict[str, str]):
        self.place, self.log = place, Path(setup.output) / "workers" / f"{place}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = os.pipe()
        with self.log.open("ab") as log:
            # A new session keeps Ctrl-C from reaching the worker; the search catches it and stops its workers.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cofitune_fast.trials.worker", str(theirs)], env=environment,
                stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[theirs], start_new_session=True,
            )
        os.close(theirs)
        self.answers = os.fdopen(ours, encoding="utf-8")
        self._send(setup.to_dict())

    def give(self, job: Job) -> None:
        self._send(job)

    def answer(self) -> dict[str, Any] | None:
        line = self.answers.readline()
        return json.loads(line) if line.endswith("\n") else None

    def death(self) -> str:
        status = self._process.wait()
        how = f"with status {status}"
        if status < 0:
            how = f"by {signal.Signals(-status).name}"
            if -status == signal.SIGKILL:
                how += ", which is often a lack of memory that fewer workers would not have"
        return f"{how}; its messages are in {self.log}"

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.answers.close()
        with suppress(OSError):  # unsent input is lost, as the process is dead
            self._process.stdin.close()

    def _send(self, content: dict[str, Any]) -> None:
        with suppress(OSError):  # the process is dead, which `answer` reports
            self._process.stdin.write(json.dumps(content).encode() + b"\n")
            self._process.stdin.flush()


def visible_gpus(setup: TrialSetup) -> list[str]:
    """List the GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them; empty if the model is to be on the CPU.
    """
    if str(setup.model.get("device")) == "cpu":
        return []
    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


def on_device(setup: TrialSetup, device: str) -> TrialSetup:
    """Return the setup for a process on `device`: "cuda", its only visible GPU, or "cpu"."""
    return replace(setup, model={**setup.model, "device": device})


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
