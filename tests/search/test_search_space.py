"""The search space: the paper's tree, a user's own, and what is refused."""

import pytest
from tiny import make_tiny_model

from cofitune_fast.errors import CofituneError
from cofitune_fast.regions import resolve_layout
from cofitune_fast.search import Candidate, Level, children, space_levels
from cofitune_fast.search.space import check_space

PAPER = space_levels("paper")


def test_a_level_can_list_whole_regions():
    (level,) = space_levels([{"regions": ["ffn@40%-75%", "full"]}])
    found = children(level, 0, None, 30)
    assert [str(one.region) for one in found] == ["ffn@40%-75%", "full"] and found[1].region.is_full
    halves = children(Level("halves", ("halves",)), 1, found[1], 30)
    assert [str(one.region) for one in halves] == ["all@0-14", "all@15-29"]
    assert {one.parent for one in halves} == {found[1].id}


def regions(candidates):
    return [str(candidate.region) for candidate in candidates]


def test_the_papers_first_level_is_broad_ranges_times_modules():
    assert regions(children(PAPER[0], 0, None, 32)) == [
        "attn.q+attn.k+attn.v@0%-50%", "ffn.up+ffn.down@0%-50%",
        "attn.q+attn.k+attn.v@25%-75%", "ffn.up+ffn.down@25%-75%",
        "attn.q+attn.k+attn.v@50%-100%", "ffn.up+ffn.down@50%-100%",
    ]


def test_then_quarters_then_projections_inside_the_best():
    best = Candidate(0, "ffn.up+ffn.down", "25%-75%")
    quarters = children(PAPER[1], 1, best, 32)
    assert regions(quarters) == ["ffn.up+ffn.down@25%-50%", "ffn.up+ffn.down@50%-75%"]
    assert {quarter.parent for quarter in quarters} == {best.id}
    assert regions(children(PAPER[2], 2, quarters[0], 32)) == ["ffn.up@25%-50%", "ffn.down@25%-50%"]


def test_a_single_role_has_no_parts():
    assert children(PAPER[2], 2, Candidate(1, "ffn.up", "25%-50%"), 32) == []


@pytest.mark.parametrize("layers, halves", [
    ("0%-25%", ["0%-12.5%", "12.5%-25%"]), ("8-15", ["8-11", "12-15"]), ("all", ["0-15", "16-31"]), ("3-4", ["3", "4"]),
    ("0-2", ["0", "1-2"]), ("7", []),
])
def test_halves_of_a_range(layers, halves):
    found = children(Level("halves", ("halves",)), 1, Candidate(0, "mha", layers), 32)
    assert [candidate.layers for candidate in found] == halves


def test_ids_come_from_content():
    assert Candidate(0, "ffn", "all").id == Candidate(0, "ffn.gate+ffn.up+ffn.down", "0%-100%").id
    assert Candidate(0, "ffn", "all").id == Candidate(1, "ffn", "all", "x").id  # wherever in the tree it is reached
    assert len({Candidate(0, "ffn", "all").id, Candidate(0, "ffn.up", "all").id, Candidate(0, "ffn", "8-15").id,
                Candidate(0, "ffn", "all", rate_factor=2.0).id}) == 4


def test_seeds_come_from_the_id_and_the_searchs_seed():
    node = Candidate(0, "ffn", "all")
    assert node.seed(1) == Candidate(2, "ffn", "0%-100%", "x").seed(1)
    seeds = {node.seed(1), node.seed(2), Candidate(0, "mha", "all").seed(1)}
    assert len(seeds) == 3 and all(0 <= seed < 2**31 for seed in seeds)


def test_a_users_own_space():
    levels = space_levels([
        {"name": "thirds", "layers": ["0%-33%", "33%-66%", "66%-100%"], "roles": ["all"]},
        {"layers": "parent", "roles": ["mha", "ffn"]},
    ])
    assert levels[1] == Level("level 2", ("parent",), ("mha", "ffn"))
    best = children(levels[0], 0, None, 30)[1]
    assert regions(children(levels[1], 1, best, 30)) == ["mha@33%-66%", "ffn@33%-66%"]


def test_a_space_from_a_file(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("- {name: a, layers: [all], roles: [mha, ffn]}\n- {layers: [halves, thirds], roles: parent}\n")
    levels = space_levels(str(file))
    assert levels == (Level("a", ("all",), ("mha", "ffn")), Level("level 2", ("halves", "thirds"), ("parent",)))
    found = children(levels[1], 1, Candidate(0, "mha", "all"), 12)
    assert [one.layers for one in found] == ["0-5", "6-11", "0-3", "4-7", "8-11"]
    with pytest.raises(CofituneError, match=r"No search space at .*none\.yaml: the file does not exist"):
        space_levels(str(tmp_path / "none.yaml"))
    file.write_text("a: 1")
    with pytest.raises(CofituneError, match="must be a list of levels"):
        space_levels(str(file))


def test_roles_outside_the_parent_are_no_candidates():
    level = Level("module", roles=("mha", "ffn.gate+ffn.up", "ffn.up+ffn.down"))
    found = children(level, 1, Candidate(0, "ffn.up+ffn.down", "25%-75%"), 32)
    assert found == []  # gate is missing from the parent, and the parent itself is not repeated
    found = children(level, 1, Candidate(0, "ffn", "25%-75%"), 32)
    assert [one.roles for one in found] == ["ffn.gate+ffn.up", "ffn.up+ffn.down"]


def test_the_extended_space_has_gate_output_three_quarters_thirds_and_a_frozen_bottom():
    extended = space_levels("extended")
    first = regions(children(extended[0], 0, None, 32))
    assert "ffn@0%-75%" in first and "all@25%-100%" in first and "mha@50%-100%" in first and len(first) == 15
    parts = children(extended[2], 2, Candidate(1, "ffn", "25%-100%"), 32)
    assert [one.layers for one in parts] == [
        "25%-62.5%", "62.5%-100%", "25%-50%", "50%-75%", "75%-100%"]


def test_a_space_that_the_model_does_not_have_is_refused():
    layout = resolve_layout(make_tiny_model())
    check_space(PAPER, layout)
    with pytest.raises(CofituneError, match=r"names layer 9, but this model has the layers 0-3"):
        check_space(space_levels([{"layers": ["all"], "roles": ["ffn"]}, {"layers": ["8-9"]}]), layout)


def test_several_ranges_have_no_halves():
    with pytest.raises(CofituneError, match=r"0-1,3 of the search space are several ranges"):
        children(Level("halves", ("halves",)), 1, Candidate(0, "mha", "0-1,3"), 32)


@pytest.mark.parametrize("space, words", [
    ("papr", "Unknown search space 'papr'; did you mean paper"),
    ([], "The search space has no level"),
    ([{"layers": "halves", "roles": ["ffn"]}], "The first level of the search space must list"),
    ([{"layers": ["all"], "roles": "eech"}], "Level 1 of the search space: roles has 'eech'"),
    ([{"layers": ["0-x"], "roles": "ffn"}], "Level 1 of the search space: layers has '0-x'"),
    ([{"layers": [], "roles": "ffn"}], "Level 1 of the search space has an empty list of layers"),
    (["ffn"], "Level 1 of the search space is 'ffn'; it must be a mapping"),
    ([{"layer": ["all"]}], "Level 1 of the search space has the unknown key 'layer'"),
])
def test_bad_spaces(space, words):
    with pytest.raises(CofituneError, match=words):
        space_levels(space)
