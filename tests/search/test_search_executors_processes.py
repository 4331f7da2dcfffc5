"""Worker processes on this machine: the same results as in this process, also when workers are killed."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from executor_jobs import batches, figures, in_this_process, kill_during, node_jobs, tiny_setup

from cofitune_fast.errors import CofituneError
from cofitune_fast.search.executors import processes
from cofitune_fast.search.executors.processes import Processes


@pytest.fixture
def started(monkeypatch):
    """The worker processes as they are started."""
    found = []
    monkeypatch.setattr(processes, "_Process", lambda *given: found.append(_process(*given)) or found[-1])
    return found


_process = processes._Process


def test_two_workers_give_what_this_process_gives_though_one_is_killed_in_the_middle(tiny_run, started):
    setup = tiny_setup(tiny_run)
    executor = Processes(setup, 2, [])
    killer = kill_during(executor, setup, "node0", lambda worker: worker._process.pid)
    results = [figures(executor.run(jobs)) for jobs in batches()]
    executor.close()
    killer.join()
    assert results == in_this_process(setup, batches())
    deaths = [worker.death() for worker in started]
    assert executor.slots == 2 and len(started) == 3  # beside the dead one's successor, a worker keeps its model
    assert all(death.startswith("by SIGKILL, which is often a lack of memory") for death in deaths)
    assert {worker.log for worker in started} == {Path(setup.output) / "workers" / f"{place}.log" for place in (0, 1)}


def test_a_worker_ends_in_the_middle_of_a_job_when_its_driver_is_gone(tiny_run):
    setup = tiny_setup(tiny_run, epochs=5000)
    worker = _process(setup, 0, dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
    assert worker.answer() == {"ready": worker._process.pid}
    worker.give(node_jobs()[0])
    while not list(setup.node_folder("node0").glob("checkpoint-*")):
        time.sleep(0.01)
    worker._process.stdin.close()  # as the system does for a killed driver
    assert worker._process.wait(60) == 0 and worker.answer() is None
    worker.kill()


def test_a_worker_that_cannot_start_is_named_with_its_messages(tiny_run, monkeypatch):
    setup = tiny_setup(tiny_run)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CofituneError, match=r"No worker could be started: .* 2 times, the last time with status 1; its "
                                            r"messages are in .*/run/workers/0\.log\.$"):
        list(Processes(setup, 1, [], retries=1).run(node_jobs()))


def test_each_worker_has_its_share_of_the_machine(tiny_run, monkeypatch):
    setup = tiny_setup(tiny_run)
    seen = []
    monkeypatch.setattr(processes, "_Process", lambda setup, place, env: seen.append((setup, place, env)))
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(processes, "_cores", lambda: 9)
    for workers, devices, threads, gpus in ((4, [], "2", [None] * 4), (None, ["2", "5"], "4", ["2", "5"]),
                                            (3, ["2", "5"], "3", ["2", "5", "2"])):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        executor, seen[:] = Processes(setup, workers, devices), []
        for _ in range(executor.slots):
            executor._start()
        assert [environment.get("CUDA_VISIBLE_DEVICES") for _, _, environment in seen] == gpus
        assert {environment["OMP_NUM_THREADS"] for _, _, environment in seen} == {threads}
        assert [place for _, place, _ in seen] == list(range(executor.slots))
        assert {given.model.get("device") for given, _, _ in seen} == {"cuda" if devices else None}


def test_without_a_gpu_the_number_of_workers_must_be_said(tiny_run):
    setup = tiny_setup(tiny_run)
    with pytest.raises(CofituneError, match=r"say how many workers .* --search\.workers 2"):
        Processes(replace(setup, model={**setup.model, "device": "cpu"}))


def test_the_gpus_are_those_that_this_process_sees(tiny_run, monkeypatch):
    setup = tiny_setup(tiny_run)
    monkeypatch.setattr(processes.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert processes.visible_gpus(setup) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7a")
    assert processes.visible_gpus(setup) == ["3", "GPU-7a"] and Processes(setup).slots == 2
    assert processes.visible_gpus(replace(setup, model={**setup.model, "device": "cpu"})) == []
