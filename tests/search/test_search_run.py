"""The search on made-up scores: what it tries, drops and chooses, its budget, and that finished work stays finished."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cases import each
from stub_trials import StubExecutor

from cofitune_fast.errors import CofituneError
from cofitune_fast.models import load_model
from cofitune_fast.regions import Region
from cofitune_fast.search import (
    Budget,
    Journal,
    Limits,
    Search,
    SearchSettings,
    named_strategy,
    node_rate,
    space_levels,
)
from cofitune_fast.trials import TrialData, TrialSetup, Workbench

LEVELS = space_levels([
    {"name": "broad", "layers": ["0-1", "1-2", "2-3"], "roles": ["attn.q+attn.v", "ffn.up+ffn.down"]},
    {"name": "narrow", "layers": "halves"},
    {"name": "projection", "roles": "each"},
])
# up+down of 2-3 is best, of it layer 3, of that the up projection is as good as both
SPEC = {"ffn.up+ffn.down@2-3": 0.7, "ffn.up+ffn.down@1-2": 0.6, "ffn.up+ffn.down@3": 0.8, "ffn.up+ffn.down@2": 0.5,
        "ffn.up@3": 0.8, "ffn.down@3": 0.6}
RUNGS = {"racing": {"rungs": (0.125, 0.5, 1.0)}}  # one rung more than by default
FIRST = ["attn.q+attn.v@0-1", "ffn.up+ffn.down@0-1", "attn.q+attn.v@1-2", "ffn.up+ffn.down@1-2", "attn.q+attn.v@2-3",
         "ffn.up+ffn.down@2-3"]


@pytest.fixture
def make(tiny_run, tmp_path):
    bench = Workbench(load_model(tiny_run["model"]), TrialData(
        **{part: tiny_run[f"data.{part}"] for part in ("train", "valid", "test")},
        **{f"versatility_{part}": tiny_run[f"versatility.{part}"] for part in ("valid", "test")}))

    def build(executor, strategy="greedy", folder="run", observer=None, prior=None, changes=None, levels=LEVELS,
              **settings):
        output = tmp_path / folder
        setup = TrialSetup({"path": tiny_run["model"]}, bench.data,
                           {"learning_rate": 1e-3, "max_steps": 4, "per_device_train_batch_size": 8}, str(output))
        search = Search(bench, setup, SearchSettings(
            levels, strategy=named_strategy(strategy, **{**RUNGS.get(strategy, {}), **(changes or {})}),
            **settings), executor, observer, prior)
        return search, Journal(output, {"seed": 1})

    return build


def run(make, executor, *args, **kwargs):
    search, journal = make(executor, *args, **kwargs)
    with journal:
        return search.run(journal)


def regions(executor):
    return [region for region, _ in executor.done]


def test_greedy_tries_every_child_of_the_best_of_a_level(make):
    executor = StubExecutor(SPEC)
    result = run(make, executor)
    assert regions(executor) == [None, *FIRST, "ffn.up+ffn.down@2", "ffn.up+ffn.down@3", "ffn.up@3", "ffn.down@3"]
    assert result.chosen.region == "ffn.up@3"  # as good as both projections, and smaller
    assert result.choice.best == next(node.id for node in result.nodes if node.region == "ffn.up+ffn.down@3")
    assert [node.region for node in result.nodes if node.best_of_level] == [
        "ffn.up+ffn.down@2-3", "ffn.up+ffn.down@3", "ffn.up@3"]
    assert all(node.fraction == 1.0 and node.dropped is None for node in result.nodes)


def test_exhaustive_refines_every_node_and_tries_a_region_once(make):
    executor = StubExecutor(SPEC)
    run(make, executor, "exhaustive")
    tried = regions(executor)[1:]
    assert len(tried) == len(set(tried)) == 6 + 8 + 16  # three pairs of layers, four single ones, each of two roles
    assert {"attn.q@0", "ffn.down@3", "attn.v@1"} <= set(tried)


def test_racing_drops_what_is_behind_and_trains_the_levels_winners_to_the_end(make):
    executor = StubExecutor(SPEC)
    result = run(make, executor, "racing")
    assert [region for region, end in executor.done[1:7]] == FIRST and {end for _, end in executor.done[1:7]} == {0.125}
    ends = {region: [end for other, end in executor.done if other == region] for region in regions(executor)}
    assert ends["attn.q+attn.v@0-1"] == [0.125]
    assert all(max(found) <= 0.5 or found == [0.125, 0.5, 1.0] for found in list(ends.values())[1:])
    assert result.chosen.region == "ffn.up@3" and ends["ffn.up@3"][-1] == 1.0
    dropped = {node.region: node for node in result.nodes if node.dropped}
    assert dropped["attn.q+attn.v@0-1"].dropped.startswith("at 0.125 of its training behind ffn.up+ffn.down@2-3 by 0.")
    assert all(node.fraction < 1.0 for node in dropped.values())
    assert [node.best_of_level for node in result.nodes if node.region in ("ffn.up+ffn.down@2-3", "ffn.up+ffn.down@3")
            ] == [True, True]


def test_a_level_is_over_when_one_is_left(make):
    spec = {"ffn.up+ffn.down@2-3": 0.9, "ffn.up+ffn.down@2": 0.1, "ffn.up+ffn.down@3": 0.1, "ffn.up@2-3": 0.1,
            "ffn.down@2-3": 0.1}
    executor = StubExecutor(spec)
    result = run(make, executor, "racing")
    assert result.chosen.region == "ffn.up+ffn.down@2-3"
    assert [end for region, end in executor.done if region == result.chosen.region] == [0.125, 0.5, 1.0]
    assert len(executor.done) == 1 + 6 + 2 + 2 + 2  # base; each child once; the winner's further rungs


def test_a_child_that_is_worse_than_its_parent_is_dropped_and_the_parent_refined(make):
    spec = {"ffn.up+ffn.down@2-3": 0.8, "ffn.up+ffn.down@2": 0.3, "ffn.up+ffn.down@3": 0.3, "ffn.up@2-3": 0.85}
    executor = StubExecutor(spec)
    result = run(make, executor, "racing")
    assert ("ffn.up@2-3", 1.0) in executor.done and ("ffn.up+ffn.down@3", 0.5) not in executor.done
    assert result.chosen.region == "ffn.up@2-3"


def test_a_parent_that_is_worse_than_its_child_is_trained_no_further(make):
    spec = {**SPEC, "ffn.up+ffn.down@3": 0.95}
    executor = StubExecutor(spec)
    parent = next(node for node in run(make, executor, "racing").nodes if node.region == "ffn.up+ffn.down@2-3")
    assert parent.dropped and "chance" not in parent.dropped and parent.best_of_level
    assert ("ffn.up+ffn.down@2-3", 1.0) not in executor.done


def test_of_equal_nodes_half_pass_a_rung_unless_all_are_kept(make):
    tried = {keep: StubExecutor({}) for keep in (0.5, 1.0)}
    for keep, executor in tried.items():
        result = run(make, executor, "racing", folder=f"keep-{keep}", changes={"keep": keep})
        firsts = [node for node in result.nodes if node.level == 0]
        assert sum(node.dropped is not None for node in firsts) == (4 if keep == 0.5 else 0)
        assert all("0.000 ± 0.000, which may be chance" in node.dropped for node in firsts if node.dropped)
    assert [sum(end == rung for _, end in tried[0.5].done[:10]) for rung in (0.125, 0.5)] == [6, 3]


def test_a_tied_parent_stays_in_the_race_and_the_smaller_wins_at_the_end(make):
    spec = {"ffn.up+ffn.down@2-3": 0.8, "ffn.up+ffn.down@3": 0.8, "ffn.up+ffn.down@2": 0.3, "ffn.up@3": 0.3}
    executor = StubExecutor(spec)
    result = run(make, executor, "racing")
    assert result.chosen.region == "ffn.up+ffn.down@3"
    parent = next(node for node in result.nodes if node.region == "ffn.up+ffn.down@2-3")
    assert parent.dropped is None and parent.fraction == 1.0 and result.choice.tied == [parent.id, result.chosen.id]


def test_a_beam_refines_several(make):
    executor = StubExecutor(SPEC)
    run(make, executor, "greedy", changes={"beam": 2})
    # up+down of 2-3 and of 1-2 are refined; layer 2 is a child of both and is tried once
    assert regions(executor)[7:10] == ["ffn.up+ffn.down@2", "ffn.up+ffn.down@3", "ffn.up+ffn.down@1"]


def test_learning_rates_follow_the_size(make):
    rates = {node.region: node.learning_rate for node in run(make, StubExecutor(SPEC)).nodes}
    # The default region has the three matrices of two of the four layers.
    assert rates["ffn.up+ffn.down@2"] == pytest.approx(1e-3 * 3**0.5)
    assert rates["ffn.up+ffn.down@2-3"] == pytest.approx(1e-3 * 1.5**0.5)
    assert rates["ffn.up@3"] == pytest.approx(1e-3 * 6**0.5) == pytest.approx(node_rate(1e-3, 1, 6))
    fixed = run(make, StubExecutor(SPEC), folder="fixed", learning_rate="fixed").nodes
    assert {node.learning_rate for node in fixed} == {1e-3}


def test_a_folder_holds_the_rate_that_is_taken_where_none_is_configured(make):
    search, _ = make(StubExecutor(SPEC))
    without = replace(search.setup, training={"max_steps": 4})
    found = Search(search.bench, without, search.settings, search.executor).identity()["training"]
    assert found == {"max_steps": 4, "learning_rate": 4e-4}


def test_the_first_level_may_try_several_rates_and_the_winners_is_inherited(make):
    result = run(make, StubExecutor(SPEC), rate_factors=(0.5, 2.0))
    first = [node for node in result.nodes if node.level == 0]
    assert len(first) == 12 and len({node.id for node in first}) == 12
    winner = next(node for node in first if node.best_of_level)
    below = [node for node in result.nodes if node.level > 0]
    assert below and all(node.rate_factor == winner.rate_factor for node in below)


def test_a_prior_orders_and_prunes(make, tmp_path):
    asked = []

    def prior(found, rates):
        asked.append(len(found))
        return [float(str(region).startswith("ffn")) for region in found]

    executor = StubExecutor(SPEC)
    run(make, executor, prior=prior, prior_keep=0.5)
    assert regions(executor)[1:4] == ["ffn.up+ffn.down@0-1", "ffn.up+ffn.down@1-2", "ffn.up+ffn.down@2-3"]
    assert asked[0] == 6
    again = StubExecutor(SPEC)
    run(make, again, prior=lambda *_: pytest.fail("it stands in the journal"), prior_keep=0.5)
    assert again.done == []


@each({"strategy": ["greedy", "racing"], "stop_after": [0, 1, 4, 7, 9]})
def test_a_search_broken_off_anywhere_resumes_to_the_same_result(make, tmp_path, strategy, stop_after):
    whole = run(make, StubExecutor(SPEC), strategy, "whole")
    first, second = StubExecutor(SPEC, stop_after), StubExecutor(SPEC)
    with pytest.raises(KeyboardInterrupt):
        run(make, first, strategy, "broken")
    resumed = run(make, second, strategy, "broken")
    done = [*first.done, *second.done]
    assert len(done) == len(set(done))
    assert resumed.to_dict() == whole.to_dict()
    assert (tmp_path / "broken" / "journal.jsonl").read_text() == (tmp_path / "whole" / "journal.jsonl").read_text()


def test_a_line_cut_off_by_a_kill_is_dropped(make, tmp_path):
    whole = run(make, StubExecutor(SPEC))
    path = tmp_path / "run" / "journal.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    again = StubExecutor(SPEC)
    assert run(make, again).to_dict() == whole.to_dict()
    assert regions(again) == ["ffn.down@3"] and path.read_bytes() == content


def test_a_budget_in_tokens(make):
    executor = StubExecutor(SPEC)
    search, journal = make(executor)
    with journal:
        tokens = round(search.work.tokens * search.work.epochs)
    result = run(make, executor, folder="other", budget=Budget(3.5 * tokens, "tokens"))
    assert len(result.nodes) == 3 and not result.to_dict()["complete"]
    assert "the budget of" in result.stopped and "would need" in result.stopped
    more = StubExecutor(SPEC)
    assert run(make, more, folder="other").to_dict()["complete"]  # a larger budget goes on
    assert regions(more)[0] == FIRST[3]


def test_a_budget_in_hours_ends_the_search_when_it_is_spent(make):
    executor = StubExecutor(SPEC, seconds=1200.0)
    result = run(make, executor, budget=Budget.parse("3h"))
    assert 3 <= len(result.nodes) < 11 and "the budget of 3 hours is spent" in result.stopped
    assert result.cost["seconds"] <= 1.05 * 3 * 3600  # what a node will take is foretold, not known


def test_a_budget_in_full_fine_tunings(make):
    executor = StubExecutor(SPEC)
    result = run(make, executor, "racing", budget=Budget.parse("3 full-sft"))
    assert result.cost["full_sft"] <= 3
    assert result.to_dict()["choice"]["fraction"] <= 1.0


@pytest.mark.parametrize(("budget", "words"), [
    ("1 token", "1 training tokens"), ("0.01 full-sft", "0.01 full fine-tunings"), ("0.0001h", "0.0001 hours")])
def test_a_budget_below_one_node(make, budget, words):
    executor = StubExecutor(SPEC)
    with pytest.raises(CofituneError, match=rf"The search ended before its first node: the budget of {words} is spent"):
        run(make, executor, budget=Budget.parse(budget))
    assert regions(executor) == [None]
    assert run(make, executor).to_dict()["complete"]  # nothing is lost


def test_what_stands_in_search_json(make):
    content = json.loads(json.dumps(run(make, StubExecutor(SPEC), "racing").to_dict()))
    assert content["strategy"] == "racing" and content["split"] == "valid" and content["complete"]
    nodes = {node["id"]: node for node in content["nodes"]}
    best = nodes[content["choice"]["best"]]
    assert best["behind"] is None and best["tied"]
    for node in nodes.values():
        assert node["difference"]["low"] <= node["difference"]["value"] <= node["difference"]["high"]
        measure = "uni" if node["fraction"] == 1.0 else "signal"
        assert node["difference"]["value"] == pytest.approx(node[measure] - content["base"][measure])
        assert ("uni" in node) == (measure == "uni")
        assert node["full_sft"] == pytest.approx(sum(rung["full_sft"] for rung in node["rungs"]))
        assert [rung["fraction"] for rung in node["rungs"]] == [0.125, 0.5, 1.0][: len(node["rungs"])]
    assert content["cost"]["full_sft"] > sum(node["full_sft"] for node in nodes.values())
    assert content["choice"]["sentence"].startswith(
        "ffn.up@3 has a Uni of 1.300, tied with the highest (ffn.up+ffn.down@3, 0.000 ± 0.000 behind), and")
    assert content["choice"]["comparisons"] == len(nodes) - 1 and best["id"] in content["choice"]["candidates"]
    assert {node["id"] for node in nodes.values() if not node["dropped"]} >= {content["chosen"], best["id"]}


SIZES = space_levels([{"regions": ["ffn@3", "ffn@1-3", "full"]}])


def test_regions_beyond_the_limits_are_not_tried(make):
    def need(region):
        return {"ffn@3": 10, "ffn@1-3": 20, "full": 40}[str(region)]

    executor, observer = StubExecutor(), Recorder()
    search, journal = make(executor, "racing", observer=observer, levels=SIZES, limits=Limits(memory=20))
    search.memory_need = need
    with journal:
        search.run(journal)
    assert set(regions(executor)) == {None, "ffn@3", "ffn@1-3"}
    assert [text for name, text in observer.told("note") if "not tried" in text] == [
        "full is not tried: it needs 40.00 B"]
    small, journal = make(StubExecutor(), "racing", folder="none", levels=SIZES, limits=Limits(time=1e-6))
    with journal, pytest.raises(CofituneError, match="No region of the search space fits; nearest is ffn@3, which"):
        small.run(journal)


def test_time_is_that_of_the_whole_training_as_a_share_of_full_sft(make):
    search, _ = make(StubExecutor(), levels=SIZES)
    needs = [search.need(Region.parse(text)).time for text in ("ffn@3", "ffn@1-3", "full")]
    assert needs[0] < needs[1] < needs[2] == pytest.approx(1.0)  # as many epochs, and no anchor


def test_everything_is_a_node_of_its_own(make):
    executor = StubExecutor({"full": 0.9, "all@all": 0.4})
    result = run(make, executor, levels=space_levels([{"regions": ["all@all", "full"]}]))
    assert regions(executor) == [None, "all@all", "full"] and result.chosen.region == "full"
    assert result.region.is_full


def test_a_race_that_is_decided_needs_no_training_to_the_end(make):
    executor = StubExecutor({"ffn@1-3": 0.9})
    search, journal = make(executor, "racing", levels=SIZES)
    with journal:
        result = search.run(journal, finish=False)
    assert result.chosen.region == "ffn@1-3" and result.chosen.fraction < 1
    assert result.choice.sentence.startswith("ffn@1-3 has the highest early signal")
    again, journal = make(executor, "racing", levels=SIZES)
    with journal:
        assert again.run(journal).chosen.fraction == 1  # the same folder, now to the end
    assert len(executor.done) == len(set(executor.done))


class Recorder:
    def __init__(self):
        self.events = []

    def __getattr__(self, name):
        return lambda *values: self.events.append((name, *values))

    def told(self, name):
        return [event for event in self.events if event[0] == name]


def test_an_observer_is_told_everything_in_order(make):
    observer = Recorder()
    run(make, StubExecutor(SPEC), "racing", observer=observer)
    names = [event[0] for event in observer.events]
    assert names[:6] == ["note", "note", "note", "level", "rung", "start"]
    assert names[-2:] == ["chosen", "remaining"] and observer.events[-1][1] == 0.0
    assert names.count("start") == names.count("finish") and names.count("drop") > 0
    best = [event[2].region for event in observer.events if event[0] == "finish"]
    assert best[-1].startswith("ffn.up")
