"""Made-up trials: items whose success depends on the region, so that searches are tested without training."""

from __future__ import annotations

import zlib

import numpy as np

from cofitune_fast.regions import Region
from cofitune_fast.scoring import ItemScore, Signal, SuiteScores
from cofitune_fast.scoring.results import make_score, score_of
from cofitune_fast.trials.job import signal_figures


def made_up_scores(spec, size=200, vers=0.5):
    """Scores of items of which the share `spec` (speciality) or `vers` (the rest) succeeds, the same items first."""
    def task(name, share):
        order = np.random.default_rng(zlib.crc32(name.encode())).permutation(size)
        return make_score([ItemScore(1.0, 1, bool(place < round(share * size))) for place in order], "exact", "exact")

    groups = ("knowledge", "reasoning", "instruction")
    return SuiteScores.of({"speciality": {"s": task("s", spec)}, **{name: {name: task(name, vers)} for name in groups}})


def made_up_signal(spec, size=200):
    """Signal of answers of one token, of which the share `spec` has an NLL of 1 and the others of 2."""
    order = np.random.default_rng(0).permutation(size)
    return Signal({"s": score_of([ItemScore(2.0 - (place < round(spec * size)), 1, False) for place in order], "nll",
                                 ("nll",))})


class StubExecutor:
    """spec: {region text: share of success at the end}; before, a part of it. Keeps the jobs it did, and can break off
    after some."""

    slots = 1

    def __init__(self, spec=None, stop_after=None, slots=1, seconds=2.0):
        self.spec, self.stop_after, self.slots, self.seconds, self.done = spec or {}, stop_after, slots, seconds, []

    def run(self, jobs):
        for job in jobs:
            if self.stop_after is not None and len(self.done) == self.stop_after:
                raise KeyboardInterrupt
            self.done.append((job["region"], job.get("end")))
            yield job, self.answer(job)

    def answer(self, job):
        share = 0.1
        if job["region"]:
            Region.parse(job["region"])
            share = self.spec.get(job["region"], 0.4) * (0.5 + 0.5 * job["end"])
        items, scores = {}, {}
        for measure in job.get("measure", ("uni",)):
            found = made_up_scores(share) if measure == "uni" else made_up_signal(share)
            items[measure] = found.to_dict(items=True) if measure == "uni" else found.to_dict()
            scores |= signal_figures(found) if measure == "signal" else {
                key: value for key, value in items["uni"].items() if key != "tasks"}
        seconds = self.seconds * (1.0 if job["region"] else 0.05)
        return {"items": items, "scores": scores,
                "cost": {"seconds": seconds, "training_seconds": 1.0 if job["region"] else 0.0, "scoring_seconds": 1.0,
                         "trained_parameters": 0, "peak_memory_bytes": 0, "cached_rows": 0, "notes": []}}

    def close(self):
        pass
