"""The grid of runs, their names, and which of them come first."""

from __future__ import annotations

from cofitune_fast.compare.order import deciding, gap, middle, next_stage, target
from cofitune_fast.methods import read_methods
from cofitune_fast.methods.runs import all_runs

METHODS = read_methods(["full-sft", {"name": "half", "method": "wise-ft", "alphas": [0.5, 1.0]}, "region"],
                       rates={"full-sft": [1, 2, 4], "half": [1, 2, 4], "region": [10, 20, 40]})
SEEDS = (7, 3)


def test_ids_are_stable_and_come_from_what_is_run():
    runs = all_runs(METHODS, ["a", "b"], SEEDS)
    assert len(runs) == len({run.id for run in runs}) == 2 * 2 * 3 * (1 + 2 + 1)
    assert [run.id for run in runs] == [run.id for run in all_runs(METHODS, ["a", "b"], SEEDS)]
    assert runs[0].id.startswith("full-sft-a-1-s7-")
    half = next(run for run in runs if run.method == "half")
    assert half.training == runs[0].training and half.digest != runs[0].digest
    other = read_methods([{"method": "full-sft", "training": {"weight_decay": 0.1}, "learning_rates": [1, 2, 4]}])
    assert not {run.digest for run in all_runs(other, ["a"], SEEDS)} & {run.digest for run in runs}
    renamed = read_methods([{"name": "sft", "method": "full-sft", "learning_rates": [1, 2, 4]}])
    assert [run.digest for run in all_runs(renamed, ["a", "b"], SEEDS)] == [
        run.digest for run in runs if run.method == "full-sft"]


def test_first_the_middle_rates_then_the_sweeps_then_the_seeds_and_every_run_once():
    waiting, stages = all_runs(METHODS, ["a"], SEEDS), []
    total = len(waiting)
    while waiting:
        stages.append(next_stage(waiting, METHODS, SEEDS, {}))
        waiting = [run for run in waiting if run not in stages[-1]]
    assert sum(map(len, stages)) == total
    said = [[(run.method, run.learning_rate, run.seed) for run in stage if run.alpha in (None, 1.0)]
            for stage in stages]
    assert said == [
        [("full-sft", 2.0, 7), ("half", 2.0, 7), ("region", 20.0, 7)],
        [("full-sft", 1.0, 7), ("full-sft", 4.0, 7), ("half", 1.0, 7), ("half", 4.0, 7), ("region", 10.0, 7),
         ("region", 40.0, 7)],
        [(name, rate, 3) for name, rates in (("full-sft", (2.0, 1.0, 4.0)), ("half", (2.0, 1.0, 4.0)),
                                             ("region", (20.0, 10.0, 40.0))) for rate in rates],
    ]
    assert middle((1e-5, 3e-5, 5e-5, 1e-4)) == 5e-5 and middle((3,)) == 3


def test_methods_near_the_front_come_first_but_none_is_left_out():
    points = {("full-sft", "a"): {(2.0, None): (0.2, 0.2)}, ("half", "a"): {(2.0, 1.0): (0.5, 0.3)},
              ("region", "a"): {(20.0, None): (0.4, 0.5)}, ("region", "b"): {(20.0, None): (0.9, 0.9)}}
    waiting = [run for run in all_runs(METHODS, ["a"], SEEDS) if run.seed == 7 and run.learning_rate not in (2, 20)]
    order = [run.method for run in next_stage(waiting, METHODS, SEEDS, points)]
    assert order == ["half"] * 4 + ["region"] * 2 + ["full-sft"] * 2


def test_of_the_further_seeds_those_that_decide_come_first():
    points = {("full-sft", "a"): {(1.0, None): (0.1, 0.5), (2.0, None): (0.5, 0.4), (4.0, None): (0.51, 0.2)},
              ("region", "a"): {(10.0, None): (0.2, 0.5), (20.0, None): (0.3, 0.5), (40.0, None): (0.4, 0.1)}}
    decide = {("full-sft", "a"): {(1.0, None), (2.0, None)}, ("region", "a"): {(20.0, None), (40.0, None)}}
    seeds, waiting, stages = (7, 3, 5), [], []
    for run in all_runs([METHODS[0], METHODS[2]], ["a"], (7, 3, 5)):
        waiting += [run] * (run.seed != 7)
    while waiting:
        stages.append(next_stage(waiting, METHODS, seeds, points, decide))
        waiting = [run for run in waiting if run not in stages[-1]]
    assert [{(run.learning_rate, run.seed) for run in stage} for stage in stages] == [
        {(1, 3), (2, 3), (20, 3), (40, 3)}, {(1, 5), (2, 5), (20, 5), (40, 5)},
        {(4, 3), (10, 3)}, {(4, 5), (10, 5)}]


def test_the_places_that_decide():
    found = {(rate, None): point for rate, point in ((1, (0.1, 0.9)), (2, (0.3, 0.6)), (3, (0.5, 0.2)))}
    assert deciding(found, 0.25) == {(1, None), (2, None)}
    assert deciding(found, 0.4) == {(1, None), (2, None), (3, None)}  # the first has the highest Uni
    assert deciding(found, 0.9) == {(1, None), (2, None), (3, None)}  # none reaches it
    behind = {**found, (4, None): (0.29, 0.4), (5, None): (0.49, 0.1)}  # not on the frontier
    assert deciding(behind, 0.25) == {(1, None), (2, None)}
    assert deciding({}, 0.5) == set()
    points = {("x", "a"): found, ("y", "a"): {(1, None): (0.8, 0.0)}, ("y", "b"): {(1, None): (0.9, 0.0)}}
    assert target(points, "a", "x") == 0.98 * 0.1 and target(points, "a") == 0.98 * 0.8
    assert target(points, "c") == 0.0


def test_the_gap_to_the_front():
    others = [(0.5, 0.3), (0.4, 0.5)]
    assert gap([(0.3, 0.2)], others) == 0.4 - 0.3
    assert gap([(0.3, 0.2), (0.45, 0.29)], others) == 0.3 - 0.29
    assert gap([(0.45, 0.4)], others) == 0.0  # on the front
    assert gap([], others) == gap([(0.1, 0.1)], []) == 0.0
