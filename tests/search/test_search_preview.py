"""The preview: the nodes of a space and what they cost, added up by hand."""

from __future__ import annotations

import pytest
from families import tiny_family
from tiny import make_tiny_model

from cofitune_fast.errors import CofituneError
from cofitune_fast.regions import Region, resolve_layout
from cofitune_fast.search import STRATEGIES, Limits, Strategy, Work, space_levels
from cofitune_fast.search.preview import likely_walk, preview, walk
from cofitune_fast.search.work import token_weights

FFN, MHA = 3 * 32 * 48, 2 * 32 * 32 + 2 * 32 * 16
WORK = Work((FFN + MHA,) * 4, 4000, 100, 50, 1.0, 1.0, 20, 10)


@pytest.fixture(scope="module")
def layout():
    return resolve_layout(make_tiny_model())


def shown(levels, strategy, layout, work=WORK):
    return preview(levels, strategy, layout, 10_000, lambda one: 100, lambda one: 1e-3, work)


def test_every_node_of_the_papers_space_stands_there_once_under_its_parent(layout):
    rows = shown(space_levels("paper"), STRATEGIES["greedy"], layout)["nodes"]
    ids = [row["id"] for row in rows]
    assert len(ids) == len(set(ids)) == 6 + 8 + 20  # four quarters of two modules; q, k, v, up, down of each
    assert all(row["parent"] is None or row["parent"] in ids[:place] for place, row in enumerate(rows))
    assert {row["share"] for row in rows} == {0.01}


def test_parts_in_which_no_layer_lies_are_left_out(layout):
    levels = space_levels([{"layers": ["0%-25%"], "roles": ["ffn"]}, {"layers": "halves"}])
    assert [len(found) for found in walk(levels, layout)] == [1]  # one layer has no halves


def test_costs_add_up(layout):
    levels = space_levels([{"layers": ["0-1", "2-3"], "roles": ["ffn"]}])
    low = WORK.training(0, 2 * FFN, 0, 1, seen=1.0) + WORK.scoring(0, first=False)
    high = WORK.training(2, 2 * FFN, 0, 1, seen=1.0) + WORK.scoring(2, first=False)
    content = shown(levels, STRATEGIES["greedy"], layout)
    assert [row["full_sft"] for row in content["nodes"]] == pytest.approx([low / WORK.full_sft, high / WORK.full_sft])
    assert content["totals"]["full_sft_most"] == pytest.approx((low + high + WORK.scoring()) / WORK.full_sft)
    assert content["totals"]["full_sft_paper"] > content["totals"]["full_sft_most"]  # nothing cached


def test_what_is_beyond_the_limits_is_shown_and_not_counted(layout):
    levels = space_levels([{"regions": ["ffn@3", "ffn@0-3", "full"]}])
    limits = Limits(time=0.6)
    content = preview(levels, STRATEGIES["greedy"], layout, 10_000, lambda one: 100, lambda one: 1e-3, WORK, limits)
    assert [row["left_out"] is None for row in content["nodes"]] == [True, False, False]
    assert content["nodes"][2]["left_out"] == "1.00 of full SFT's time" and content["totals"]["nodes_likely"] == 1
    alone = shown(space_levels([{"regions": ["ffn@3"]}]), STRATEGIES["greedy"], layout)["totals"]
    assert content["totals"]["full_sft_most"] == alone["full_sft_most"]
    with pytest.raises(CofituneError, match="nearest is ffn@3"):
        preview(levels, STRATEGIES["greedy"], layout, 10_000, lambda one: 100, lambda one: 1e-3, WORK, Limits(time=0.1))


def test_a_race_trains_one_winner_to_the_end(layout):
    levels = space_levels([{"layers": ["0", "1"], "roles": ["ffn", "mha"]}])
    race = Strategy("racing", (0.5, 1.0))
    totals = shown(levels, race, layout)["totals"]
    expected = 0.0
    for lowest, trained in ((0, FFN), (0, MHA), (1, FFN), (1, MHA)):
        half = WORK.training(lowest, trained, 0, 0.5, seen=1.0)
        early, last = (WORK.measuring(measure, lowest, first=False) for measure in ("signal", "uni"))
        expected += half + early + (half + last) / 4  # the other half and its scores for one of four
    assert totals["full_sft_most"] == pytest.approx((expected + WORK.scoring()) / WORK.full_sft)
    assert totals["full_sft_likely"] == totals["full_sft_most"]  # one rung only: nobody to drop before it


def test_without_data_there_are_no_costs(layout):
    content = shown(space_levels("paper"), STRATEGIES["racing"], layout, None)
    assert {row["full_sft"] for row in content["nodes"]} == {None} and "full_sft_most" not in content["totals"]


def test_the_likely_walk_refines_as_many_as_the_beam(layout):
    levels = space_levels("paper")
    assert [len(found) for found in likely_walk(levels, layout, STRATEGIES["greedy"])] == [6, 2, 2]
    assert [len(found) for found in likely_walk(levels, layout, STRATEGIES["exhaustive"])] == [6, 8, 20]


@pytest.mark.parametrize(("family", "found", "left_out"), [
    ("gpt2", ["ffn.up@0%-50%", "all@0%-50%", "all@all", "full"], ["ffn.gate@0%-50%", "attn.gate@all"]),
    ("nemotron_h", ["ffn.up@0%-50%", "all@0%-50%", "all@all", "full"], ["ffn.gate@0%-50%", "attn.gate@all"]),
    ("qwen3_5_text", ["ffn.gate@0%-50%", "ffn.up@0%-50%", "attn.gate@all", "all@0%-50%", "all@all", "full"], []),
])
def test_regions_that_a_family_lacks_are_left_out(family, found, left_out):
    layout = resolve_layout(tiny_family(family))
    levels = space_levels([{"regions": ["ffn.gate@0%-50%", "ffn.up@0%-50%", "attn.gate@all", "all@0%-50%", "all@all",
                                        "full", "mha+ffn@0-3"]}, {"roles": "each"}])
    content = shown(levels, STRATEGIES["greedy"], layout, WORK)
    assert [row["region"] for row in content["nodes"] if row["level"] == 0] == found
    assert [note.split("'")[1] for note in content["notes"]] == left_out
    assert all(row["region"].split("@")[0] in layout.roles for row in content["nodes"] if row["level"] == 1)
    with pytest.raises(CofituneError, match=r"No region of the search space can be trained; .* 'attn.q_a@all' trains"):
        shown(space_levels([{"roles": "attn.q_a", "layers": "all"}]), STRATEGIES["greedy"], layout)


def test_of_experts_the_weights_that_a_token_meets_are_counted():
    layout = resolve_layout(tiny_family("qwen3_moe"))
    dense, sparse = (token_weights(Region.parse(f"ffn@{layer}").cells(layout), layout) for layer in (0, 1))
    assert (dense, sparse) == (3 * 64 * 96, 2 * 3 * 64 * 32)  # two of four experts
