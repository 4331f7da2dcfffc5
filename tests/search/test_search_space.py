"""The search space: the paper's tree, a user's own, and what is refused."""

import pytest

from cofitune_fast.errors import CofituneError
from cofitune_fast.search import Candidate, Level, children, space_levels

PAPER = space_levels("paper")


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
    found = children(Level("halves", "halves"), 1, Candidate(0, "mha", layers), 32)
    assert [candidate.layers for candidate in found] == halves


def test_ids_come_from_content():
    assert Candidate(0, "ffn", "all").id == Candidate(0, "ffn.gate+ffn.up+ffn.down", "0%-100%").id
    ids = {Candidate(0, "ffn", "all").id, Candidate(1, "ffn", "all").id, Candidate(0, "ffn", "all", "x").id}
    assert len(ids) == 3


def test_a_users_own_space():
    levels = space_levels([
        {"name": "thirds", "layers": ["0%-33%", "33%-66%", "66%-100%"], "roles": ["all"]},
        {"layers": "parent", "roles": ["mha", "ffn"]},
    ])
    assert levels[1] == Level("level 2", "parent", ("mha", "ffn"))
    best = children(levels[0], 0, None, 30)[1]
    assert regions(children(levels[1], 1, best, 30)) == ["mha@33%-66%", "ffn@33%-66%"]


@pytest.mark.parametrize("space, words", [
    ("papr", "Unknown search space 'papr'; did you mean paper"),
    ([], "The search space has no level"),
    ([{"layers": "halves", "roles": ["ffn"]}], "The first level of the search space must list"),
    ([{"layers": ["all"], "roles": "eech"}], "Level 1 of the search space: roles is 'eech'"),
    ([{"layer": ["all"]}], "Level 1 of the search space has the unknown key 'layer'"),
])
def test_bad_spaces(space, words):
    with pytest.raises(CofituneError, match=words):
        space_levels(space)
