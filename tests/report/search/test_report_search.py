"""The search's pictures and its part of the page: marks counted, the front against brute force, words by numbers."""

from __future__ import annotations

import json
import math
import random

import pytest
from synthetic_report import node, racing_search, search_only, synthetic_report

from cofitune_fast.artefacts import checked
from cofitune_fast.errors import CofituneError
from cofitune_fast.report import read_report, write_report
from cofitune_fast.report.search.cost import parts, search_cost
from cofitune_fast.report.search.frontier import frontier, points, search_frontier
from cofitune_fast.report.search.plane import pareto_front, search_plane
from cofitune_fast.report.search.rows import search_view
from cofitune_fast.report.search.sentences import interval, search_headline
from cofitune_fast.report.search.tree import search_tree
from cofitune_fast.report.style.canvas import style

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


def searched(**more) -> dict:
    return checked("report", synthetic_report(search=racing_search(**more)))


def drawn(draw, report):
    with style():
        return draw(report)


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_the_additions_are_kept_and_may_all_be_absent():
    given = racing_search()
    read = checked("report", synthetic_report(search=given))["search"]
    assert {key: read[key] for key in given if key not in ("stopped", "nodes")} == {
        key: value for key, value in given.items() if key not in ("stopped", "nodes")
    }
    for found, node_given in zip(read["nodes"], given["nodes"], strict=True):
        assert found == node_given | {"dropped": node_given["dropped"] or ""}
    old = checked("report", synthetic_report())["search"]
    assert old["choice"] is None and old["base"] is None and old["test"] is None and old["complete"]
    assert all(item["fraction"] == 1.0 and item["rungs"] == [] and item["behind"] is None for item in old["nodes"])
    assert math.isnan(old["cost"]["full_sft"]) and math.isnan(old["nodes"][0]["learning_rate"])


def test_the_frontier_joins_what_no_cheaper_region_equals():
    nodes = [{"id": key, "need": {"time": time}, "rungs": [{"fraction": 0.25, "signal": signal}]}
             for key, time, signal in (("a", 0.5, -2.0), ("b", 0.4, -3.0), ("c", 0.9, -1.0), ("d", 0.7, -2.5),
                                       ("e", 0.9, -1.5), ("f", 0.4, -2.8))]
    assert [node["id"] for _, _, node in frontier(points(nodes))] == ["f", "a", "c"]
    figure = drawn(search_frontier, searched())
    (line,) = [line for line in figure.axes[0].lines if line.get_gid() == "frontier"]
    assert len(figure.axes[0].texts) == len(searched()["search"]["nodes"]) and len(line.get_xdata()) >= 1
    without = searched()
    for one in without["search"]["nodes"]:
        one["need"] = None
    assert drawn(search_frontier, without) is None


def test_a_node_that_only_the_signal_judged_shows_it():
    search = racing_search()
    for key in ("spec", "vers", "uni"):
        del search["nodes"][0][key], search["nodes"][0][f"{key}_se"]
    report = checked("report", synthetic_report(search=search))
    row = search_view(report)["rows"][0]
    assert row["signal"] == "NLL 1.729, KL 0.020" and [text for text, _ in row["scores"]] == ["–"] * 3
    texts = [text.get_text() for text in drawn(search_tree, report).axes[0].texts]
    assert "NLL 1.729, KL 0.020" in texts


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["nodes"][1]["rungs"].reverse(), "whose fractions are [0.5, 0.25], but they must rise"),
        (lambda s: s["nodes"][1].update(fraction=0), "search.nodes[1] has a `fraction` of 0, but it must be above 0"),
        (lambda s: s["nodes"][1]["rungs"][0].update(spec=3), "nodes[1].rungs[0].spec is 3, but must lie between"),
        (lambda s: s["nodes"][1].update(behind=0.1), "nodes[1].behind must be a JSON object"),
        (lambda s: s["choice"].update(next_best="zz"), "search names 'zz' as choice.next_best, which is not"),
        (lambda s: s["choice"].update(tied=["h", "y"]), "search names 'y' as one of choice.tied, which is not"),
        (lambda s: s["choice"].update(confidence=95), "choice.confidence is 95, but must lie between 0 and 1"),
        (lambda s: s["choice"].update(sentence=""), "choice.sentence must be a text that is not empty"),
        (lambda s: s["test"].pop("chosen"), "search.test.chosen is missing"),
        (lambda s: s["cost"].update(flops="many"), "search.cost.flops must be a number or null, not 'many'"),
    ],
)
def test_each_flaw_is_named(change, words):
    search = racing_search()
    change(search)
    with pytest.raises(CofituneError) as caught:
        checked("report", synthetic_report(search=search), "r.json")
    assert words in str(caught.value)


@pytest.mark.parametrize("seed", range(20))
def test_the_pareto_front_is_that_of_brute_force(seed):
    draw = random.Random(seed)
    points = [{"spec": draw.randrange(8) / 10, "vers": draw.randrange(8) / 10} for _ in range(draw.randrange(1, 30))]

    def dominated(one):
        return any(
            other["spec"] >= one["spec"] and other["vers"] >= one["vers"]
            and (other["spec"] > one["spec"] or other["vers"] > one["vers"])
            for other in points
        )  # fmt: skip

    front = pareto_front(points)
    assert {id(point) for point in front} == {id(point) for point in points if not dominated(point)}
    assert [point["spec"] for point in front] == sorted(point["spec"] for point in front)
    assert pareto_front([]) == []


def test_the_plane_has_a_mark_per_region_and_the_front_of_those_not_dropped():
    report = searched()
    (axes,) = drawn(search_plane, report).axes
    # Each region is one point, hollow if dropped, besides the base, the ring of the chosen one and the key's own lines.
    single = [line for line in axes.lines if len(line.get_xdata()) == 1]
    at = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in single]
    nodes = report["search"]["nodes"]
    places = [(item["spec"], item["vers"]) for item in nodes]
    chosen, base = (0.362, 0.604), (0.111, 0.612)
    assert sorted(at) == sorted([*places, base, chosen])
    hollow = [line for line in single if line.get_markerfacecolor() == "none"]
    assert len(hollow) == sum(bool(item["dropped"]) for item in nodes) + 1
    assert len(axes.containers) == sum(not item["dropped"] for item in nodes) + 1  # bars: the others and the base
    (front,) = [line for line in axes.lines if line.get_gid() == "pareto"]
    kept = [place for place, item in zip(places, nodes, strict=True) if not item["dropped"]]
    expected = pareto_front([{"spec": spec, "vers": vers} for spec, vers in [base, *kept]])
    assert list(front.get_xdata())[1:-1] == [point["spec"] for point in expected]
    assert list(front.get_ydata())[1:-1] == [point["vers"] for point in expected]


def test_bars_are_intervals_of_95_percent():
    (axes,) = drawn(search_plane, searched()).axes
    ends = axes.containers[0].lines[2][0].get_segments()[0]
    assert ends[1][0] - ends[0][0] == pytest.approx(2 * 1.96 * 0.012)


def test_the_tree_dims_what_was_dropped_and_shows_the_rung():
    report = searched()
    (axes,) = drawn(search_tree, report).axes
    nodes = report["search"]["nodes"]
    assert sum(patch.get_gid() == "dropped" for patch in axes.patches) == sum(bool(item["dropped"]) for item in nodes)
    bars = [line.get_xdata() for line in axes.lines if line.get_gid() == "rung"]
    widths = [(right - left) / 1.75 for left, right in bars]
    assert widths == pytest.approx([item["fraction"] for item in nodes])
    assert sum(text.get_text() == "out at 25\u00a0%" for text in axes.texts) == 2
    (old,) = drawn(search_tree, checked("report", synthetic_report())).axes
    assert not [line for line in old.lines if line.get_gid() == "rung"]


def test_a_tree_in_which_all_was_dropped_is_drawn():
    search = racing_search(chosen=None)
    for item in search["nodes"]:
        item["dropped"] = "behind"
    assert drawn(search_tree, checked("report", synthetic_report(search=search))) is not None
    assert drawn(search_plane, checked("report", synthetic_report(search=search))) is not None


def test_cost_is_stacked_by_rung_and_sums_to_the_total():
    report = searched()
    figure = drawn(search_cost, report)
    (axes,) = figure.axes
    nodes = report["search"]["nodes"]
    bars = [patch for patch in axes.patches if patch.get_width() and patch.get_y() > -0.5 and patch.get_height() > 0.5]
    assert len(bars) == 1 + sum(len(item["rungs"]) for item in nodes)
    assert sum(bar.get_width() for bar in bars) == pytest.approx(report["search"]["cost"]["full_sft"])
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["the base's scores", *(item["label"] for item in nodes)]
    for position, item in enumerate(nodes, 1):
        row = [bar for bar in bars if round(bar.get_y() + bar.get_height() / 2) == position]
        assert [bar.get_width() for bar in row] == pytest.approx([cost for _, cost in parts(item, "full_sft")])
        assert [bar.get_x() for bar in row][1:] == pytest.approx([bar.get_x() + bar.get_width() for bar in row][:-1])
    assert plain(figure.texts[0].get_text()) == "The whole search: 2.28 full fine-tunings, 30 min 48 s"


def test_cost_without_counted_operations_is_time():
    search = racing_search()
    del search["cost"], search["nodes"][0]["full_sft"]
    figure = drawn(search_cost, checked("report", synthetic_report(search=search)))
    assert figure.axes[0].get_xlabel() == "seconds" and len(figure.axes[0].get_yticks()) == 10
    for item in search["nodes"]:
        item["seconds"] = None
    assert drawn(search_cost, checked("report", synthetic_report(search=search))) is None


def test_the_page_tells_how_sure_the_choice_is(tmp_path):
    text = plain(write_report(synthetic_report(search=racing_search()), tmp_path)["html"].read_text())
    for words in ("ffn.down@50%-75% is tied with the highest Uni.", "strategy <b>racing</b>", "resamples", "41 %",
                  "cannot be told from the highest at 95 %", "4; the 95 % holds for all of them", "chosen, tied",
                  "dropped at 25% of its training behind d by 0.070 ± 0.020", "+0.243", "[+0.208, +0.278]",
                  "[−0.015, +0.021]", "0.32 × full SFT", "4e-4", "On the test part", ">0.355<",
                  "2.28 × full SFT"):  # fmt: skip
        assert words in text, words
    assert "ended early" not in text and text.count('class="dropped"') == 5
    old = plain(write_report(synthetic_report(), tmp_path / "old")["html"].read_text())
    assert "How sure" not in old and "On the test part" not in old and "Rung" not in old and "95 % intervals" in old


def test_a_search_that_ended_early_says_so(tmp_path):
    report = search_only(search=racing_search(complete=False, stopped="the budget of 1 hours is spent."))
    text = write_report(report, tmp_path)["html"].read_text()
    assert "The search ended early: the budget of 1 hours is spent." in text


def test_a_search_alone_makes_a_page_of_its_own(tmp_path):
    (tmp_path / "search.json").write_text(json.dumps(search_only()))
    paths = write_report(tmp_path, tmp_path)
    assert paths["json"] == tmp_path / "search.json" and not (tmp_path / "report.json").exists()
    assert [path.stem for path in paths["png"]] == ["search_tree", "search_frontier", "search_plane", "search_cost"]
    text = plain(paths["html"].read_text())
    assert "The search chose ffn.down@50%-75%: Uni 0.966 ± 0.017, +0.243 [+0.208, +0.278]" in text
    assert "Methods compared" not in text and "<details open>" in text and "scored on the <b>test</b>" not in text
    copy = write_report(tmp_path / "search.json", tmp_path / "copy")
    assert read_report(copy["json"])["search"]["chosen"] == "j"
    assert copy["html"].read_text() == paths["html"].read_text()


def test_a_folder_with_both_gives_the_report(tmp_path):
    (tmp_path / "search.json").write_text(json.dumps(search_only()))
    (tmp_path / "report.json").write_text(json.dumps(synthetic_report()))
    assert len(read_report(tmp_path)["methods"]) == 4
    (tmp_path / "empty").mkdir()
    with pytest.raises(CofituneError, match=r"No report at .*empty.report\.json"):
        read_report(tmp_path / "empty")


@pytest.mark.parametrize(
    ("low", "high", "outcome", "words"),
    [
        (0.01, 0.03, "ahead", "clearly better than the base"),
        (-0.01, 0.03, "tie", "no measurable difference"),
        (-0.03, -0.01, "behind", "clearly worse than the base"),
        (None, None, "unknown", "not judged"),
    ],
)
def test_the_headline_follows_the_interval(low, high, outcome, words):
    search = racing_search()
    search["nodes"][-1]["difference"].update(low=low, high=high)
    line = search_headline(checked("report", synthetic_report(search=search))["search"])
    assert line.outcome == outcome and words in line.badge
    assert ("untrained base is better" in " ".join(line.sentences)) == (outcome == "behind")


def test_the_headline_says_what_its_scores_are_worth():
    tested = plain(" ".join(search_headline(searched()["search"]).sentences))
    assert "On the test part, which the search never saw: Uni 0.962 ± 0.017, the base 0.733 ± 0.017." in tested
    untested = " ".join(search_headline(searched(test=None)["search"]).sentences)
    assert "flatter it" in untested and "flatter" not in tested


def test_no_choice_and_no_search():
    search = checked("report", synthetic_report(search=racing_search(chosen=None)))["search"]
    assert search_headline(search).badge == "no choice"
    assert search_view(checked("report", synthetic_report(search=None))) is None
    assert interval(None) == ("–", "") and interval({"value": 0.1, "low": math.nan, "high": 1.0}) == ("+0.100", "")


def test_a_hostile_search_is_text(tmp_path):
    evil = "<script>alert('x')</script>"
    search = racing_search(strategy=evil, complete=False, stopped=evil)
    search["nodes"].append(node("z", "d", 2, 0.3, 0.5, label=evil, region=evil, dropped=evil))
    search["choice"].update(sentence=evil, next_best="z")
    assert "<script" not in write_report(search_only(search=search), tmp_path)["html"].read_text()
