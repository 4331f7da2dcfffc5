"""Workers on a Ray cluster (extra `ray`): as many as its machines have room for, with a GPU each where there are any.

A worker is a Ray actor, so that it keeps its GPU and its loaded model from job to job; a job is a task of that actor.
`WorkerPool` retries jobs instead of Ray. Ray would wait until the lost actor's resources are free again, whereas the
pool gives the job to another worker. Only JSON text is exchanged.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import CofituneError
from ...trials import TrialSetup
from ...trials.worker import Worker
from .pool import Job, PoolWorker, WorkerPool
from .processes import on_device

CONNECT_SECONDS = 30
_PROBE = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"


class RayCluster(WorkerPool):
    """Executor on a Ray cluster.

    All machines must see the search's folder, the model and the data under the same paths, and have the same versions
    of Python, Ray and this package. A Ray that this process has already joined is used as it is.

    Args:
        address: "auto" or host:port of a running cluster. None stands for RAY_ADDRESS, or else for a cluster of this
            machine's CPUs alone, which ends with this executor.
        workers: largest number of jobs at once.
        gpus: GPUs per job; by default one where the cluster has any.
        cpus: CPUs per job, which is also its number of threads; by default one, or an equal share of all CPUs where the
            cluster is this machine alone and `workers` is given.
        retries: how often a job is given to another worker after its worker died.

    Raises:
        CofituneError: Ray is not installed, the cluster cannot be joined, or no machine has the resources of a job.
    """

    def __init__(
        self, setup: TrialSetup, address: str | None = None, *, workers: int | None = None, gpus: float | None = None,
        cpus: float | None = None, retries: int = 3,
    ):
        self._ray = ray = _ray()
        self._joined = not ray.is_initialized()
        if self._joined:
            address = address or os.environ.get("RAY_ADDRESS")
            if address is None and cpus is None and workers:
                cpus = max(1, (os.cpu_count() or 1) // workers)
            _join(ray, address, round(workers * cpus) if address is None and workers else None)
        cpus = 1 if cpus is None else cpus
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if gpus is None:
            gpus = float(str(setup.model.get("device")) != "cpu" and any(machine.get("GPU") for machine in machines))
        room = sum(_room(machine, cpus, gpus) for machine in machines)
        if not room:
            self._leave()
            raise CofituneError(f"No machine of the Ray cluster has the {cpus:g} CPUs and {gpus:g} GPUs that a node of "
                                f"the search needs: there are {_sizes(machines)}.")
        super().__init__(min(room, workers or room), retries)
        setup = _absolute(on_device(setup, "cuda" if gpus else "cpu"))
        self._text = json.dumps(setup.to_dict())
        handle, self._shared = tempfile.mkstemp(prefix=".shared-", dir=setup.output)
        os.close(handle)
        self._actor = ray.remote(Worker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0, runtime_env=_checkout())

    def close(self) -> None:
        super().close()
        Path(self._shared).unlink(missing_ok=True)
        self._leave()

    def _leave(self) -> None:
        if self._joined:
            self._ray.shutdown()

    def _start(self) -> PoolWorker:
        return _RayWorker(self._ray, self._actor.remote(self._text, self._shared))

    def _wait(self, workers: Sequence[PoolWorker]) -> Iterable[PoolWorker]:
        by_answer = {worker.coming: worker for worker in workers}
        done, _ = self._ray.wait(list(by_answer))
        return [by_answer[answer] for answer in done]


class _RayWorker(PoolWorker):
    def __init__(self, ray: Any, actor: Any):
        self._ray, self._actor, self._end = ray, actor, ""
        self.coming = actor.ready.remote()

    def give(self, job: Job) -> None:
        self.coming = self._actor.do.remote(json.dumps(job))

    def answer(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._ray.get(self.coming))
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            self._end = reason.partition(" Some common causes include")[0]  # leave out Ray's long advice
            return None

    def death(self) -> str:
        return f"as Ray says: {self._end.removesuffix('.')}"

    def kill(self) -> None:
        self._ray.kill(self._actor)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Even with log_to_driver=False Ray reports dead workers on standard output, where --json writes its lines.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray
    except ImportError:
        raise CofituneError("The executor ray needs the package ray: pip install 'cofitune-fast[ray]'.") from None
    return ray


def _join(ray: Any, address: str | None, cpus: int | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        ray.init("local", num_cpus=cpus, include_dashboard=False, **options)
        return
    advice = "start one with `ray start --head`, or give the address that it printed, as host:port."
    host, _, port = address.rpartition(":")
    if address != "auto":
        if not host or not port.isdigit():
            raise CofituneError(f"The Ray address {address!r} is neither auto nor host:port.")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            raise CofituneError(f"There is no Ray cluster at {address} ({error}): {advice}") from None
    # Probe in another process: Ray would retry for minutes and then kill this one.
    try:
        probe = subprocess.run([sys.executable, "-c", _PROBE, address], capture_output=True, text=True,
                               timeout=CONNECT_SECONDS)
    except subprocess.TimeoutExpired:
        raise CofituneError(f"What is at {address} did not answer as a Ray cluster within {CONNECT_SECONDS} seconds: "
                            f"{advice}") from None
    if probe.returncode:
        reason = (probe.stderr.strip() or "no reason given").splitlines()[-1]
        if "InvalidAuthToken" in probe.stderr:
            reason = "it asks for its token: set RAY_AUTH_MODE=token, and see Ray's page on token authentication"
        raise CofituneError(f"No Ray cluster at {address} can be joined ({reason}): {advice}")
    ray.init(address, **options)


def _checkout() -> dict[str, Any]:
    """Return the runtime environment that lets workers import this package from a checkout that is not installed."""
    root = Path(__file__).parents[3]
    return {} if root.name in ("site-packages", "dist-packages") else {"env_vars": {"PYTHONPATH": str(root)}}


def _room(machine: dict[str, float], cpus: float, gpus: float) -> int:
    """Count the jobs that fit on a machine at once."""
    wanted = {"CPU": cpus, "GPU": gpus}
    return min((int(machine.get(kind, 0) / each) for kind, each in wanted.items() if each), default=0)


def _sizes(machines: Sequence[dict[str, float]]) -> str:
    return ", ".join(f"{machine.get('CPU', 0):g} CPUs and {machine.get('GPU', 0):g} GPUs" for machine in machines)


def _absolute(setup: TrialSetup) -> TrialSetup:
    """Make all paths absolute, because a worker of the cluster starts in another folder."""
    data = {key: os.path.abspath(value) for key, value in vars(setup.data).items()
            if key.split("_")[0] in ("train", "valid", "test", "versatility") and isinstance(value, str)}
    path = setup.model["path"]
    model = {**setup.model, "path": os.path.abspath(path) if os.path.exists(path) else path}
    return replace(setup, model=model, data=replace(setup.data, **data), output=os.path.abspath(setup.output))
