"""Items that flipped between two points of a comparison, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from ...artefacts.comparison import FlipsEntry
from ...scoring import SuiteScores, suite_flips


def flips_over_seeds(
    before: Mapping[int, SuiteScores], after: Mapping[int, SuiteScores]
) -> dict[str, FlipsEntry]:
    """Return {group or "vers": flips} over the seeds that both have; {seed: scores on the test part}."""
    seeds = sorted(before.keys() & after.keys())
    found = {seed: suite_flips(before[seed], after[seed]) for seed in seeds}
    groups = dict.fromkeys(group for flips in found.values() for group in flips)
    return {group: {
        "items": found[seeds[0]][group].items,
        **{way: fmean(getattr(found[seed][group], way) for seed in seeds)
           for way in ("right_to_wrong", "wrong_to_right")},
        "seeds": [{"seed": seed, **found[seed][group].to_dict()} for seed in seeds],
    } for group in groups}
