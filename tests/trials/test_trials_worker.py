"""A worker's answers: JSON for results, for what a user can put right, and for anything else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cofitune_fast.trials import TrialData, TrialSetup, worker
from cofitune_fast.trials.worker import Worker

JOB = json.dumps({"id": "node", "region": None})


@pytest.fixture
def setup(tmp_path):
    return TrialSetup({"path": str(tmp_path / "absent")}, TrialData(), {}, str(tmp_path))


def make_worker(setup, shared=None):
    return Worker(json.dumps(setup.to_dict()), shared)


def test_a_result_carries_the_id_of_its_job_and_the_base_is_loaded_once(setup, monkeypatch):
    loads = []
    monkeypatch.setattr(TrialSetup, "workbench", lambda self: loads.append(self) or "bench")
    monkeypatch.setattr(worker, "run_job", lambda bench, setup, job: {"cost": 0.1, "seen": [bench, setup.output, job]})
    one = make_worker(setup)
    for _ in range(2):
        assert json.loads(one.do(JOB)) == {"id": "node", "result": {
            "cost": 0.1, "seen": ["bench", setup.output, {"id": "node", "region": None}]}}
    assert loads == [setup]


def double(bench, setup, job):
    return {"twice": 2 * job["number"], "bench": bench}


def test_a_setup_may_name_what_does_its_jobs(setup, monkeypatch):
    monkeypatch.setattr(TrialSetup, "workbench", lambda self: "bench")
    one = make_worker(replace(setup, work=f"{__name__}:double"))
    assert json.loads(one.do('{"id": "x", "number": 4}')) == {"id": "x", "result": {"twice": 8, "bench": "bench"}}


def test_what_a_user_can_put_right_comes_as_its_sentence(setup):
    assert json.loads(make_worker(setup).do(JOB)) == {
        "error": f"No model at {setup.model['path']}: the folder does not exist."}


def test_anything_else_comes_with_its_traceback(setup, monkeypatch):
    monkeypatch.setattr(TrialSetup, "workbench", lambda self: [][1])
    answer = json.loads(make_worker(setup).do(JOB))
    assert list(answer) == ["failure"]
    assert answer["failure"].startswith("Traceback") and "IndexError: list index out of range" in answer["failure"]


def test_a_machine_without_the_searchs_folder_says_so(setup, tmp_path):
    shared = tmp_path / "shared"
    answer = json.loads(make_worker(setup, str(shared)).ready())
    assert f"does not see the folder {tmp_path} of this search" in answer["error"]
    shared.touch()
    assert list(json.loads(make_worker(setup, str(shared)).ready())) == ["ready"]
