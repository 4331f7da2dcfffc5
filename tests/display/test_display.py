"""The three displays are told the same race; what they show of it is compared word by word."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest
from display_cases import CANDIDATES, LEVEL, SECOND, node, race
from rich.console import Console

from cofitune_fast.display import JsonLines, PlainDisplay, TreeDisplay, make_display, show_space
from cofitune_fast.search import Candidate

PLAIN = """\
[     0 s] Search
[     0 s]   scoring the base (valid)
[     0 s]   level 1, broad range: 4 nodes
[     0 s]    up to 25 % of the training: 4 nodes
[     0 s]     attn.q+attn.k+attn.v@0%-50%  NLL 1.200  KL 0.0100  signal -1.210 ± 0.012  (from the journal)  \
best so far: attn.q+attn.k+attn.v@0%-50%
[     0 s]     ffn.up+ffn.down@0%-50% ...
[     0 s]     attn.q+attn.k+attn.v@50%-100% ...
[     0 s]     attn.q+attn.k+attn.v@50%-100%  Spec 0.260  Vers 0.560  Uni 0.820 ± 0.012  (12 s)  \
best so far: attn.q+attn.k+attn.v@50%-100%
[     0 s]     about 1 min 15 s left
[     0 s]     ffn.up+ffn.down@0%-50%  Spec 0.300  Vers 0.600  Uni 0.900 ± 0.012  (12 s)  \
best so far: ffn.up+ffn.down@0%-50%
[     0 s]     ffn.up+ffn.down@50%-100% ...
[     0 s]     ffn.up+ffn.down@50%-100%  Spec 0.325  Vers 0.625  Uni 0.950 ± 0.012  (12 s)  \
best so far: ffn.up+ffn.down@50%-100%
[     0 s]     attn.q+attn.k+attn.v@50%-100% dropped: at 25 % of its training behind ffn.up+ffn.down@50%-100% \
by 0.130 ± 0.020
[     0 s]    up to 50 % of the training: 2 nodes
[     0 s]     ffn.up+ffn.down@50%-100% ...
[     0 s]     ffn.up+ffn.down@0%-50% ...
[     0 s]     ffn.up+ffn.down@50%-100%  Spec 0.335  Vers 0.635  Uni 0.970 ± 0.012  (12 s)  \
best so far: ffn.up+ffn.down@50%-100%
[     0 s]     ffn.up+ffn.down@0%-50%  Spec 0.315  Vers 0.615  Uni 0.930 ± 0.012  (12 s)  \
best so far: ffn.up+ffn.down@50%-100%
[     0 s]   level 2, projection: 2 nodes
[     0 s]     ffn.up@50%-100% ...
[     0 s]     ffn.up@50%-100%  Spec 0.315  Vers 0.615  Uni 0.930 ± 0.012  (12 s)  \
best so far: ffn.up+ffn.down@50%-100%
[     0 s]   chosen: ffn.up+ffn.down@50%-100%
[     0 s]   It has the highest Uni.
"""

TREE = """\
* Search
├── scoring the base (valid)
└── broad range (4 nodes)                  Spec   Vers   Uni              time
    ✓ attn.q+attn.k+attn.v@0%-50%     25 % NLL 1.200  KL 0.010 ± 0.012  journal
    * ffn.up+ffn.down@0%-50%          50 % 0.300  0.600  0.900 ± 0.012  12 s
    ✗ attn.q+attn.k+attn.v@50%-100%   25 % 0.260  0.560  0.820 ± 0.012  12 s
          dropped at 25 % of its training behind ffn.up+ffn.down@50%-100% by
          0.130 ± 0.020
    * ffn.up+ffn.down@50%-100%        50 % 0.325  0.625  0.950 ± 0.012  12 s
0 s so far, about 1 min 15 s left
best so far at 25 %: ffn.up+ffn.down@50%-100%  Spec 0.325  Vers 0.625  Uni 0.950
± 0.012
"""

SPACE = """\
broad › narrow
attn.q+attn.k+attn.v@0%-50%      13.3 M (9.9 %)  0.21 × full SFT  lr 2e-4
└── attn.q+attn.k+attn.v@0%-25%  6.60 M (5.0 %)
ffn.up@0%-50%                     900 K (0.7 %)  0.10 × full SFT  lr 8e-4
3 nodes in the whole space, of which racing tries about 2.
Cost: about 1.20 and at most 1.90 × full SFT.
The paper's way, every child of a level to the end and nothing cached: 10.90 × full SFT.
Time: about 25 min 00 s.
"""


def console(terminal: bool = False, **more) -> Console:
    return Console(**{"file": io.StringIO(), "width": 80, "height": 40, "force_terminal": terminal, **more})


def written(screen: Console) -> str:
    """What stands there, with * for any picture of a spinner and without spaces at the ends of lines."""
    text = re.sub("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", "*", screen.file.getvalue())
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


@pytest.fixture
def no_time(monkeypatch):
    monkeypatch.setattr("time.perf_counter", lambda: 100.0)


def test_plain_lines(no_time):
    screen = console()
    race(PlainDisplay(screen))
    assert screen.file.getvalue() == PLAIN


def test_the_tree_in_the_middle_of_a_race(no_time):
    screen = console()
    display = TreeDisplay(screen)
    race(display, until=16)  # two nodes at work
    screen.print(display)
    assert written(screen) == TREE


def test_the_tree_is_dim_where_dropped_and_green_where_best():
    screen = console(terminal=True, color_system="standard")
    display = TreeDisplay(screen)
    race(display)
    screen.print(display)
    styles = {}
    for line in screen.file.getvalue().splitlines():
        for name in (str(one.region) for one in CANDIDATES):
            if name in line and "0.012" in line and "best so far" not in line:
                found = re.findall(r"\x1b\[([\d;]+)m[^\x1b]*" + re.escape(name), line)
                styles[name] = found or ["0"]  # 0: no style of its own
    lost, best, other = (str(CANDIDATES[index].region) for index in (2, 3, 1))
    assert styles[lost] == ["2"] and styles[best] == ["32"] and styles[other] == ["0"]


def test_a_live_tree_ends_with_every_stage_and_node():
    screen = console(terminal=True, height=12)
    display = make_display(screen)
    assert isinstance(display, TreeDisplay)
    with display.running():
        race(display)
        display.stage("Report")
    last = screen.file.getvalue().split("Search")[-1]
    assert all(str(one.region) in last for one in (*CANDIDATES, *SECOND)) and "✓ Report" in last
    assert "more" not in last and "It has the highest Uni." in last


def test_a_level_that_is_over_keeps_its_best_lines_while_the_search_goes_on():
    screen = console(height=20)
    display = TreeDisplay(screen)
    many = [Candidate(0, "ffn.up", f"{layer}") for layer in range(12)]
    display.stage("Search")
    display.level(LEVEL, many)
    for rank, one in enumerate(many):
        display.finish(node(one, 0.5 + (rank * 5 % 12) / 100), node(many[7], 0.61), False)
    screen.print(display)
    assert written(screen).count("ffn.up@") == 6 + 1 and "… and 6 more" in written(screen)
    display.level(LEVEL, SECOND)
    screen.file.seek(0)
    screen.file.truncate()
    screen.print(display)
    kept = re.findall(r"✓ (ffn\.up@\d+) ", written(screen))
    assert kept == sorted((f"ffn.up@{rank}" for rank in range(12) if rank * 5 % 12 >= 8), key=lambda n: int(n[7:]))
    assert "… and 8 more" in written(screen)


def test_json_lines_parse_and_hold_the_events():
    stream = io.StringIO()
    race(JsonLines(stream))
    lines = [json.loads(line, parse_constant=pytest.fail) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == [
        "stage", "note", "level", "rung", "finish", "start", "start", "finish", "remaining", "finish", "start",
        "finish", "drop", "rung", "start", "start", "finish", "finish", "level", "rung", "start", "finish",
        "remaining", "chosen",
    ]  # fmt: skip
    ids = [one.id for one in CANDIDATES]
    assert [one["id"] for one in lines[2]["nodes"]] == ids and lines[3]["nodes"] == ids and lines[3]["fraction"] == 0.25
    first, done = lines[4], lines[16]
    assert first["from_journal"] and not done["from_journal"]
    assert done["region"] == "ffn.up+ffn.down@50%-100%" and done["fraction"] == 0.5 and done["best"] == ids[3]
    assert done["scores"]["uni"] == 0.97 and done["cost"]["seconds"] == 12.0 and done["cost"]["loss"] is None
    assert lines[12]["id"] == ids[2] and lines[12]["reason"].startswith("at 25 % of its training behind")
    assert lines[8]["seconds"] == 75.0 and lines[22]["seconds"] is None
    assert lines[-1]["sentence"] == "It has the highest Uni." and lines[-1]["id"] == ids[3]
    assert all(line["time"] >= 0 for line in lines)


def test_the_right_display_is_made(monkeypatch):
    assert isinstance(make_display(console()), PlainDisplay)
    assert isinstance(make_display(console(terminal=True)), TreeDisplay)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    display = make_display(console(terminal=True), as_json=True)
    with display.running():
        display.note("hello")
    assert json.loads(sys.stdout.getvalue())["text"] == "hello"
    make_display(console(quiet=True), as_json=True).note("not the first process")
    assert sys.stdout.getvalue().count("\n") == 1


def test_two_rates_of_one_region_are_told_apart():
    twice = Candidate(0, "ffn.up", "all", None, 2.0)
    screen = console(width=200)
    PlainDisplay(screen).finish(node(twice, 0.8), node(twice, 0.8), False)
    assert screen.file.getvalue().count("ffn.up@all ×2") == 2


def test_levels_without_rungs_say_nothing_of_rungs():
    screen = console()
    display = PlainDisplay(screen)
    display.level(LEVEL, CANDIDATES)
    display.rung(1.0, CANDIDATES)
    assert "training" not in screen.file.getvalue()


def test_the_space_as_a_tree():
    roots = {"parent": None, "level": 0, "level_name": "broad", "kind": "node"}
    nodes = [
        {**roots, "id": "a", "region": "attn.q+attn.k+attn.v@0%-50%", "trained_parameters": 13.3e6, "share": 0.099,
         "full_sft": 0.21, "learning_rate": 2e-4},
        {"id": "b", "parent": "a", "level": 1, "level_name": "narrow", "region": "attn.q+attn.k+attn.v@0%-25%",
         "trained_parameters": 6.6e6, "share": 0.0495, "full_sft": None, "learning_rate": None, "kind": "later"},
        {**roots, "id": "c", "region": "ffn.up@0%-50%", "trained_parameters": 900e3, "share": 0.007, "full_sft": 0.1,
         "learning_rate": 8e-4},
    ]  # fmt: skip
    totals = {"nodes": 3, "strategy": "racing", "nodes_likely": 2, "full_sft_likely": 1.2, "full_sft_most": 1.9,
              "full_sft_paper": 10.9, "seconds": 1500}
    screen = console(width=120)
    screen.print(show_space(nodes, totals))
    assert written(screen).replace("\u00a0", " ") == SPACE
    screen = console(width=120)
    screen.print(show_space([], {"nodes": 0}))
    assert "0 nodes in the whole space.\n" in written(screen)
