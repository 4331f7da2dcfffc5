"""Jobs on the tiny model, what they give in this process, and a way to end a worker in the middle of one."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace

from cofitune_fast.search.executors import InProcess
from cofitune_fast.trials import TrialData, TrialSetup, run_job

REGIONS = ("ffn.up+ffn.down@50%-100%", "mha@0%-50%", "ffn.up@25%-75%")


def tiny_setup(tiny_run, epochs=10):
    """The nodes leave a checkpoint after every step; there are 2 steps an epoch."""
    data = TrialData(*(tiny_run[key] for key in ("data.train", "data.valid", "data.test", "versatility.valid",
                                                 "versatility.test")))
    training = {"learning_rate": 1e-2, "per_device_train_batch_size": 8, "num_train_epochs": epochs, "use_cpu": True}
    os.makedirs(tiny_run["output"])
    return TrialSetup({"path": tiny_run["model"]}, data, training, tiny_run["output"], checkpoint_minutes=0.0)


def node_jobs(regions=REGIONS, begin=0.0, end=1.0):
    return [{"id": f"node{number}", "region": region, "split": "valid", "learning_rate": 1e-2, "seed": number,
             "begin": begin, "end": end, "last": end == 1.0} for number, region in enumerate(regions)]


def in_this_process(setup, batches):
    """What `figures` gives for the batches of jobs, done in another folder and without interruption."""
    setup = replace(setup, output=setup.output + "-here", checkpoint_minutes=5.0)
    bench = setup.workbench()
    executor = InProcess(lambda job: run_job(bench, setup, job))
    return [figures(executor.run(jobs)) for jobs in batches]


def figures(pairs):
    """What of the results does not depend on the machine, as JSON gives it."""
    return {job["id"]: json.loads(json.dumps([result["scores"], result["items"], result["cost"]["trained_parameters"]]))
            for job, result in pairs}


def batches():
    """The base, and three nodes in two rungs."""
    return [[{"id": "base", "region": None, "split": "valid"}], node_jobs(end=0.5), node_jobs(begin=0.5)]


def kill_during(executor, setup, node, process_id):
    """A thread that sends SIGKILL to the worker of the node, once, as soon as the node has left a checkpoint."""
    def kill():
        folder = setup.node_folder(node)
        while not list(folder.glob("checkpoint-*")):
            time.sleep(0.002)
        worker = next(worker for worker, job in list(executor._busy.items()) if job["id"] == node)
        os.kill(process_id(worker), signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread
