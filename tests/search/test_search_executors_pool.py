"""Executors: who gets which job, what becomes of the jobs of dead workers, and what stops the others."""

from __future__ import annotations

import pytest

from cofitune_fast.errors import CofituneError
from cofitune_fast.search.executors import InProcess
from cofitune_fast.search.executors.pool import PoolWorker, WorkerPool

DEAD = None


class Scripted(PoolWorker):
    """Answers what `script(job, number of the worker)` gives; the job is None when it starts."""

    def __init__(self, number, script):
        self.number, self.script, self.jobs, self.killed = number, script, [], False
        self.coming = script(None, number)

    def give(self, job):
        assert not self.killed
        self.jobs.append(job["id"])
        self.coming = self.script(job["id"], self.number)

    def answer(self):
        return self.coming

    def death(self):
        return "of boredom"

    def kill(self):
        self.killed = True


class Pool(WorkerPool):
    """Workers answer one at a time, the one that was asked last first; those in `mute` never do."""

    def __init__(self, slots=2, retries=3, script=lambda job, number: {"result": job}, mute=()):
        super().__init__(slots, retries)
        self.script, self.mute, self.all = script, mute, []

    def _start(self):
        self.all.append(Scripted(len(self.all), self.script))
        return self.all[-1]

    def _wait(self, workers):
        able = [worker for worker in workers if worker.number not in self.mute]
        assert able, "nobody would ever answer"
        return able[-1:]


def jobs(*names):
    return [{"id": name} for name in names]


def test_in_this_process_jobs_go_one_after_another():
    executor = InProcess(lambda job: {"result": job["id"]})
    assert list(executor.run(jobs("a", "b"))) == [({"id": "a"}, {"result": "a"}), ({"id": "b"}, {"result": "b"})]
    assert executor.slots == 1


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_every_job_gives_its_result_once_and_no_worker_starts_for_nothing(slots):
    pool = Pool(slots)
    assert sorted((job["id"], result) for job, result in pool.run(jobs("a", "b", "c"))) == [(x, x) for x in "abc"]
    assert len(pool.all) == min(slots, 3)
    assert sorted(job for worker in pool.all for job in worker.jobs) == ["a", "b", "c"]
    assert [result for _, result in pool.run(jobs("d"))] == ["d"] and len(pool.all) == min(slots, 3)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_job_is_asked_for_when_a_worker_is_free_for_it(slots):
    ended, asked = [], []

    def one_after_another():
        for name in "abcdef":
            asked.append((name, len(ended)))
            yield {"id": name}

    for job, _ in Pool(slots).run(one_after_another()):
        ended.append(job["id"])
    assert sorted(ended) == list("abcdef")
    assert asked == [(name, max(0, place - slots + 1)) for place, name in enumerate("abcdef")]


def test_a_job_whose_worker_died_goes_to_another_one():
    pool = Pool(1, script=lambda job, number: DEAD if (job, number) == ("a", 0) else {"result": (job, number)})
    assert [result for _, result in pool.run(jobs("a", "b"))] == [("a", 1), ("b", 1)]
    assert pool.all[0].killed and not pool.all[1].killed


def test_a_job_that_kills_every_worker_ends_the_run_with_a_sentence():
    pool = Pool(2, retries=2, script=lambda job, _: DEAD if job == "b" else {"result": job})
    with pytest.raises(CofituneError, match=r"node b could not be finished: .* 3 times, the last time of boredom\."):
        list(pool.run(jobs("a", "b")))
    assert sum(worker.jobs.count("b") for worker in pool.all) == 3 and all(worker.killed for worker in pool.all)


def test_workers_that_die_while_they_start_cost_no_job_a_try():
    pool = Pool(1, retries=1, script=lambda job, number: DEAD if (job, number) in {(None, 0), ("a", 1)}
                else {"result": number})
    assert [result for _, result in pool.run(jobs("a"))] == [2]
    pool = Pool(1, retries=1, script=lambda *_: DEAD)
    with pytest.raises(CofituneError, match="No worker could be started: its process died 2 times"):
        list(pool.run(jobs("a")))


def test_a_worker_that_never_comes_up_holds_no_job():
    pool = Pool(2, mute={0})
    assert [job["id"] for job, _ in pool.run(jobs("a", "b", "c"))] == ["a", "b", "c"]
    assert pool.all[0].jobs == []
    pool.close()
    assert all(worker.killed for worker in pool.all)


@pytest.mark.parametrize("answer,error,text", [
    ({"error": "No data: give some."}, CofituneError, "^No data: give some.$"),
    ({"failure": "Traceback: of the worker"}, RuntimeError, "Traceback: of the worker"),
])
@pytest.mark.parametrize("bad", ["b", None])
def test_what_a_worker_says_is_raised_and_the_others_are_stopped(answer, error, text, bad):
    pool = Pool(2, script=lambda job, _: answer if job == bad else {"result": job})
    with pytest.raises(error, match=text):
        list(pool.run(jobs("a", "b", "c")))
    assert pool.all and all(worker.killed for worker in pool.all)


def test_an_error_of_the_caller_stops_the_workers_and_goes_on():
    pool = Pool(2)
    with pytest.raises(KeyboardInterrupt):
        for _ in pool.run(jobs("a", "b", "c")):
            raise KeyboardInterrupt
    assert pool.all and all(worker.killed for worker in pool.all)
    assert [result for _, result in pool.run(jobs("d"))] == ["d"]  # with a new worker
