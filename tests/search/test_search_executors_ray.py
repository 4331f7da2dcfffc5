"""A local Ray cluster of two processors: the same results as in this process, also when workers are killed."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from executor_jobs import batches, figures, in_this_process, kill_during, node_jobs, tiny_setup

from cofitune_fast.errors import CofituneError
from cofitune_fast.search.executors import ray_cluster
from cofitune_fast.search.executors.ray_cluster import RayCluster

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Ray, joined by this process."""
    ray = ray_cluster._ray()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("COFITUNE_PREFIX_CACHE", str(tmp_path_factory.mktemp("prefix-cache")))
        environment.delenv("RAY_ADDRESS", raising=False)
        ray_cluster._join(ray, None, 2)
        yield ray
        ray.shutdown()


@pytest.fixture
def processes(monkeypatch):
    """The process id of each worker that came up."""
    found, answer = {}, ray_cluster._RayWorker.answer

    def noting(self):
        content = answer(self)
        if content and "ready" in content:
            found[self] = content["ready"]
        return content

    monkeypatch.setattr(ray_cluster._RayWorker, "answer", noting)
    return found


@needs_ray
def test_two_workers_give_what_this_process_gives_though_one_is_killed_in_the_middle(
    tiny_run, cluster, processes, monkeypatch, capfd
):
    setup = tiny_setup(tiny_run)
    monkeypatch.chdir(Path(setup.output).parent)
    relative = replace(setup, output="run", model={"path": Path(setup.model["path"]).name})
    executor = RayCluster(relative)
    killer = kill_during(executor, setup, "node0", processes.get)
    results = [figures(executor.run(jobs)) for jobs in batches()]
    executor.close()
    killer.join()
    assert capfd.readouterr().out == ""
    assert results == in_this_process(setup, batches())
    assert executor.slots == 2 and len(set(processes.values())) == 3
    assert [path.name for path in Path(setup.output).iterdir()] == ["nodes"]
    assert cluster.is_initialized()  # it was not the executor's to end


@needs_ray
def test_workers_that_cannot_start_are_named_with_what_ray_says(tiny_run, cluster, monkeypatch):
    class Broken:
        def __init__(self, setup, shared):
            assert json.loads(setup)["output"] == str(Path(shared).parent) and Path(shared).exists()

        def ready(self):
            os._exit(3)

    monkeypatch.setattr(ray_cluster, "Worker", Broken)
    executor = RayCluster(tiny_setup(tiny_run), retries=1)
    with pytest.raises(CofituneError, match=r"No worker could be started: .* 2 times, .* as Ray says: The actor is "
                                            r"dead .*End of file\.$"):
        list(executor.run(node_jobs()))
    executor.close()


@needs_ray
def test_a_cluster_without_room_for_a_job_is_refused(tiny_run, cluster):
    with pytest.raises(CofituneError, match=r"has the 3 CPUs and 0 GPUs that .*: there are 2 CPUs and 0 GPUs"):
        RayCluster(tiny_setup(tiny_run), cpus=3, gpus=0)


def test_room_is_counted_machine_by_machine():
    machine = {"CPU": 8.0, "GPU": 2.0}
    wanted = [(1, 0), (1, 1), (5, 1), (0, 0.5), (1, 3)]
    assert [ray_cluster._room(machine, *one) for one in wanted] == [8, 2, 1, 4, 0]
    assert ray_cluster._room({"memory": 5.0}, 1, 0) == 0


@pytest.mark.parametrize("address,text", [
    ("nonsense", "'nonsense' is neither auto nor host:port"),
    ("ray://", "neither auto nor host:port"),
    ("127.0.0.1:1", "There is no Ray cluster at 127.0.0.1:1 .*refused.*: start one with `ray start --head`"),
    ("127.0.0.1:99999", "There is no Ray cluster at 127.0.0.1:99999"),
])
def test_an_address_without_a_cluster_is_refused(address, text):
    with pytest.raises(CofituneError, match=text):
        ray_cluster._join(None, address, None)


@needs_ray
def test_something_else_at_the_address_is_refused(monkeypatch):
    monkeypatch.setattr(ray_cluster, "CONNECT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(CofituneError, match=f"at {address} did not answer as a Ray cluster within 1 seconds"):
            ray_cluster._join(None, address, None)


@pytest.mark.parametrize("stderr,reason", [
    ("Traceback\nConnectionError: no Ray instance", r"\(ConnectionError: no Ray instance\)"),
    ("InvalidAuthToken: is missing\nConnectionError: Failed", "asks for its token: set RAY_AUTH_MODE=token"),
])
def test_a_cluster_that_cannot_be_joined_is_refused_with_the_reason(monkeypatch, stderr, reason):
    failed = subprocess.CompletedProcess([], 1, "", stderr)
    monkeypatch.setattr(ray_cluster.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(CofituneError, match=f"No Ray cluster at auto can be joined .*{reason}"):
        ray_cluster._join(None, "auto", None)


def test_workers_find_a_package_that_is_not_installed(monkeypatch):
    for file, expected in (("/home/me/checkout/a/b/c/d.py", {"env_vars": {"PYTHONPATH": "/home/me/checkout"}}),
                           ("/usr/lib/python3/site-packages/a/b/c/d.py", {})):
        monkeypatch.setattr(ray_cluster, "__file__", file)
        assert ray_cluster._checkout() == expected


def test_without_the_package_the_extra_is_named(tiny_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CofituneError, match=r"pip install 'cofitune-fast\[ray\]'"):
        RayCluster(tiny_setup(tiny_run))
