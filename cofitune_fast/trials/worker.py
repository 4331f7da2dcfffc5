"""Worker process that loads the base once and does the jobs it receives. Setup, jobs and answers are JSON.

An answer is {"id", "result"}, or {"error"} with the sentence of a CofituneError, or {"failure"} with another
exception's traceback.

    python -m cofitune_fast.trials.worker FD

It reads the setup and then jobs, one a line, from standard input. It writes one line per answer to the file descriptor
FD, so that library output cannot mix with the answers. It exits when its input ends, even in the middle of a job. Then
its parent may have been killed, and a restarted parent must not find an old worker in the same folder.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from ..data.encode import RowsCut
from ..errors import CofituneError
from .job import run_job
from .setup import TrialSetup
from .workbench import Workbench


class Worker:
    """Does jobs on one loaded base.

    Args:
        setup: a TrialSetup as JSON.
        shared: a file that exists if this machine sees the search's folder.
    """

    def __init__(self, setup: str, shared: str | None = None):
        self._text, self._shared = setup, shared
        warnings.simplefilter("ignore", RowsCut)  # who started the worker has said it

    def ready(self) -> str:
        """Answer {"ready": process id}, or say why this process cannot work."""
        return _answer(self._ready)

    def do(self, job: str) -> str:
        """Do a job and return the answer."""
        task = json.loads(job)
        return _answer(lambda: {"id": task["id"], "result": self._work(self._bench, self._setup, task)})

    @cached_property
    def _setup(self) -> TrialSetup:
        return TrialSetup.from_dict(json.loads(self._text))

    @property
    def _work(self) -> Callable[..., dict[str, Any]]:
        if self._setup.work is None:
            return run_job
        module, _, name = self._setup.work.partition(":")
        return getattr(import_module(module), name)

    @cached_property
    def _bench(self) -> Workbench:
        return self._setup.workbench()

    def _ready(self) -> dict[str, Any]:
        if self._shared is not None and not Path(self._shared).exists():
            raise CofituneError(
                f"The machine {platform.node()} does not see the folder {self._setup.output} of this search: let "
                "output, model and data be on storage that all machines of the cluster share under the same paths."
            )
        return {"ready": os.getpid()}


def _answer(act: Callable[[], dict[str, Any]]) -> str:
    try:
        content = act()
    except CofituneError as error:
        content = {"error": str(error)}
    except Exception:
        content = {"failure": traceback.format_exc()}
    return json.dumps(content)


def main() -> None:
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as answers:
        worker = Worker(lines.get())
        answer = worker.ready()
        while True:
            print(answer, file=answers, flush=True)
            answer = worker.do(lines.get())


def _read(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)  # sys.exit would end only this thread


if __name__ == "__main__":
    main()
