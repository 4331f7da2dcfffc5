"""Page, pictures and table of a comparison: marks counted, names readable, flaws named."""

from __future__ import annotations

import copy
import html
import io
import itertools
import json
import math

import pytest
from synthetic_comparison import METHODS, RATES, comparison

from cofitune_fast.artefacts import checked
from cofitune_fast.errors import CofituneError
from cofitune_fast.report import changes_table, comparison_table, read_report, write_report
from cofitune_fast.report.comparison.changes import change_rows
from cofitune_fast.report.comparison.losses import cost, losses
from cofitune_fast.report.comparison.page import slugs
from cofitune_fast.report.comparison.planes import plane, spread
from cofitune_fast.report.comparison.rows import chosen_rows, equal_rows, gaps, verdict_of
from cofitune_fast.report.flips import p_value
from cofitune_fast.report.style.canvas import style
from cofitune_fast.report.style.palette import GREY, LIGHT, highlighted_styles, method_styles

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

OURS = "CoFiTune + anchor"


@pytest.fixture(scope="module")
def content():
    return comparison()[0]


def drawn(draw, *arguments):
    with style():
        figure = draw(*arguments)
        figure.canvas.draw()
        return figure


def lines(axes, start):
    return {line.get_gid().removeprefix(start): line for line in axes.lines if (line.get_gid() or "").startswith(start)}


@pytest.mark.parametrize("measure", ["vers", "instruction_likelihood"])
def test_a_curve_through_each_frontier_and_a_mark_for_each_rate(content, measure):
    (axes,) = drawn(plane, content, "e2e", measure).axes
    curves = {curve["method"]: curve for curve in content["curves"] if curve["task"] == "e2e"}
    found = lines(axes, "curve ")
    assert set(found) == set(METHODS)
    for name, curve in curves.items():
        places = [(point["test"]["spec"]["value"], point["test"][measure]["value"]) for point in curve["points"]]
        corners = sorted(places[index] for index in curve["frontier"][measure] if index is not None)
        drawn_line = list(zip(*(axis.tolist() for axis in found[name].get_data()), strict=True))
        assert drawn_line[-len(corners):] == corners  # on these data none is below another on test
        marks = [line for line in axes.lines if line.get_gid() == f"point {name}"]
        assert sorted((line.get_xdata()[0], line.get_ydata()[0]) for line in marks) == sorted(places)
        hollow = [line for line in marks if line.get_markerfacecolor() == LIGHT["surface"]]
        assert len(hollow) == len(RATES) - len(corners)
    (base,) = lines(axes, "base").values()
    scores = content["base_scores"]["e2e"]["test"]
    figure = {"vers": "vers", "instruction_likelihood": "instruction"}[measure]
    assert (base.get_xdata()[0], base.get_ydata()[0]) == (pytest.approx(scores["spec"]), pytest.approx(scores[figure]))
    (target,) = lines(axes, "target").values()
    assert target.get_xdata()[0] == verdict_of(content, "e2e", measure)["target"]["value"]


def test_the_curve_leaves_out_a_corner_that_another_beats_on_the_test_part(content):
    content = copy.deepcopy(content)
    curve = next(curve for curve in content["curves"] if curve["task"] == "e2e")
    corners = [curve["points"][index]["test"] for index in curve["frontier"]["vers"] if index is not None]
    assert len(corners) > 1
    for figure in ("spec", "vers"):
        corners[0][figure]["value"] = corners[-1][figure]["value"] - 0.01
    (axes,) = drawn(plane, content, "e2e", "vers").axes
    x, y = (axis.tolist() for axis in lines(axes, "curve ")[curve["method"]].get_data())
    assert (corners[-1]["spec"]["value"], corners[-1]["vers"]["value"]) in zip(x, y, strict=True)
    assert (corners[0]["spec"]["value"], corners[0]["vers"]["value"]) not in zip(x, y, strict=True)


@pytest.mark.parametrize("task", ["e2e", "gsm8k"])
def test_no_name_touches_another_or_leaves_the_picture(content, task):
    for measure in ("vers", "instruction_likelihood"):
        figure = drawn(plane, content, task, measure)
        (axes,) = figure.axes
        names = [text for text in axes.texts if (text.get_gid() or "").startswith("name ")]
        assert {text.get_gid().removeprefix("name ") for text in names} == set(METHODS)
        with style():
            boxes = [text.get_window_extent() for text in names]
        places = sorted(text.get_position()[1] for text in names)
        gap = 0.165 / (figure.get_figheight() * axes.get_position().height)
        assert all(second - first >= gap - 1e-9 for first, second in itertools.pairwise(places))
        assert max(box.x1 for box in boxes) <= figure.bbox.x1


@pytest.mark.parametrize(("heights", "expected"), [
    ([0.1, 0.5, 0.9], [0.1, 0.5, 0.9]),
    ([0.5, 0.5, 0.5], [0.4, 0.5, 0.6]),
    ([0.2, 0.5, 0.52], [0.2, 0.46, 0.56]),
    ([0.0, 0.01], [0.0, 0.1]),
    ([0.97, 1.0], [0.9, 1.0]),
    ([0.4], [0.4]),
])  # fmt: skip
def test_names_are_moved_apart_as_little_as_need_be(heights, expected):
    assert spread(heights, 0.1) == pytest.approx(expected)


def test_losses_have_a_dot_and_interval_for_each_method_that_comes_so_far(content):
    figure = drawn(losses, content, "e2e")
    assert len(figure.axes) == 3
    for axes, measure in zip(figure.axes, ("vers", "instruction_likelihood", "drift"), strict=True):
        rows = verdict_of(content, "e2e", measure)["rows"]
        dots = {box.lines[0].get_gid() or box.get_gid(): box for box in axes.containers}
        reached = [row for row in rows if row["reaches"]]
        assert len(dots) == len(axes.containers) == len(reached) == 5
        for row, box in zip(reached, axes.containers, strict=True):
            assert box.lines[0].get_xdata()[0] == row["loss"]["value"]
            (segment,) = box.lines[2][0].get_segments()
            assert segment[:, 0] == pytest.approx([row["loss"]["low"], row["loss"]["high"]])
        assert [text.get_text() for text in axes.texts] == ["Spec 0.252 at most"]


def test_cost_stands_against_what_is_lost(content):
    (axes,) = drawn(cost, content, "gsm8k").axes
    rows = [row for row in verdict_of(content, "gsm8k", "instruction_likelihood")["rows"] if row["reaches"]]
    assert len(axes.containers) == len(rows)
    x = [box.lines[0].get_xdata()[0] for box in axes.containers]
    times = {name: seconds + 2 for name, (_, _, seconds, _) in METHODS.items()}  # the mean over the seeds 1, 2, 3
    assert x == pytest.approx([100 * times[row["method"]] / times["full SFT"] for row in rows])


def named(name, **recipe):
    return {"name": name, "recipe": {"region": "full", "lora": None, "anchor": None, **recipe}}


def test_ours_is_coloured_and_the_rest_is_grey():
    anchor = {"weight": 1.0}
    methods = [
        named("full-sft"), named("lora", lora={"rank": 16}), named("region", region="ffn@50%-75%"),
        named("narrow", region="ffn@50%-75%", anchor=anchor), named("full-anchor", anchor=anchor),
        named("lora-anchor", lora={"rank": 16}, anchor=anchor), named("broad", region="ffn@40%-75%", anchor=anchor),
    ]
    styles = highlighted_styles(methods)
    coloured = {name: look.color for name, look in styles.items() if look.color != GREY}
    assert coloured == {"narrow": "sky", "broad": "blue"}
    assert len({look.marker for look in styles.values()}) == len(methods)


def test_what_is_called_cofitune_is_ours_without_a_recipe():
    styles = highlighted_styles([{"name": name, "recipe": {}} for name in METHODS])
    assert [styles[name].color for name in METHODS] == [GREY, GREY, GREY, GREY, "sky", "blue"]


def test_our_curve_and_name_are_the_boldest(content):
    (axes,) = drawn(plane, content, "e2e", "vers").axes
    curves = {line.get_gid().removeprefix("curve "): line for line in axes.lines
              if (line.get_gid() or "").startswith("curve ")}
    names = {text.get_gid().removeprefix("name "): text for text in axes.texts
             if (text.get_gid() or "").startswith("name ")}
    assert set(curves) == set(METHODS)
    for name in METHODS:
        ours = name.startswith("CoFiTune")
        assert (curves[name].get_color() == LIGHT[GREY]) is not ours, name
        assert names[name].get_fontweight() == ("bold" if ours else "normal")
        assert (curves[name].get_linewidth() == max(line.get_linewidth() for line in curves.values())) is ours


def test_in_a_runs_picture_full_sft_is_grey_too():
    styles = method_styles(["base", "full SFT", "CoFiTune coarse", "CoFiTune fine"])
    assert [look.color for look in styles.values()] == ["base", GREY, "sky", "blue"]


def test_the_page_says_it_all(content, tmp_path):
    paths = write_report(content, tmp_path)
    assert paths["html"].name == "comparison.html" and paths["json"].name == "comparison.json"
    assert [path.stem for path in paths["png"]] == [
        f"{kind}-{task}" for task in ("e2e", "gsm8k") for kind in ("vers", "instruction", "lost", "cost")]
    page = html.unescape(paths["html"].read_text(encoding="utf-8"))
    assert page.count("<svg") == page.count("</svg>") == 8
    for verdict in content["verdicts"]:
        assert verdict["sentence"] in page
        assert all(row["sentence"] in page for row in verdict["rows"])
    for task in content["tasks"]:
        for row in chosen_rows(checked("comparison", content), task):
            assert all(line in page for entry in row.figures.values() for line in entry)
        for row in equal_rows(checked("comparison", content), task):
            assert all(cell.small in page for cell in row.losses.values())
        for row in change_rows(checked("comparison", content), task):
            assert all(line in page for lines in row.flips.values() for line in lines)
            assert all(cell.text in page and cell.small in page for cell in row.costs)
        assert all(entry["sentence"] in page for entry in content["resolution"])
    assert "full SFT on e2e, failed: the loss became NaN at step 40 (4e-4 seed 2)" in page
    assert "2 of 3" in page and "1 of 3" in page and "2 failed" in page


def test_the_same_folder_is_read_and_drawn_again(content, tmp_path):
    write_report(content, tmp_path)
    before = (tmp_path / "comparison.json").read_bytes()
    assert json.loads(before) == content
    read = read_report(tmp_path)
    assert read["curves"] == content["curves"] and read["title"] == content["title"]
    assert write_report(tmp_path, tmp_path)["html"] == tmp_path / "comparison.html"
    assert (tmp_path / "comparison.json").read_bytes() == before


def test_the_terminal_has_every_method_of_every_task(content):
    from rich.console import Console

    out = io.StringIO()
    Console(width=80, file=out).print(comparison_table(content))
    text = out.getvalue()
    for words in ("e2e", "gsm8k", "full SFT", "LoRA", "CoFiTune", "ahead", "level", "2 of 3", "1 of 3", "no 2,3"):
        assert words in text
    assert "…" not in text
    loss = next(row for row in verdict_of(content, "e2e", "vers")["rows"] if row["method"] == "LoRA")["loss"]
    interval = f"[{loss['low']:.3f},{loss['high']:.3f}]".replace("0.", ".")
    assert f"{loss['value']:.3f}" in text and interval in text


def test_a_row_of_changes_has_the_flips_and_costs_of_its_best_rate(content):
    curve = next(curve for curve in content["curves"] if (curve["task"], curve["method"]) == ("e2e", OURS))
    point = curve["points"][curve["chosen"]["uni"]["point"]]
    row = next(row for row in change_rows(checked("comparison", content), "e2e") if row.name == OURS)
    flips, against = point["flips"]["vers"], curve["chosen"]["uni"]["flips"]["vers"]
    first, by_seed, reference = row.flips["vers"]
    lost, gained, other = (f"{number:.1f}".removesuffix(".0") for number in (
        flips["right_to_wrong"], flips["wrong_to_right"], against["right_to_wrong"]))
    assert first == f"−{lost} +{gained} of 400"
    assert by_seed == "p " + ", ".join(f"{seed['p']:.2f}" for seed in flips["seeds"])
    assert reference.startswith(f"ref. −{other} +")
    assert [cell.text.replace("\u00a0", " ") for cell in row.costs] == ["6 min 42 s", "8 min 22 s", "150 K", "9.00 K"]
    assert [cell.small.replace("\u00a0", " ") for cell in row.costs] == ["", "20 % preparation", "30.0 K of the anchor",
                                                                         ""]
    assert row.drifts == [f"{-point['test'][key]['value']:.4f}" for key in ("drift", "task_drift")]


def test_the_table_of_changes_fits_into_a_terminal_and_takes_a_file_without_them(content):
    from rich.console import Console

    def printed(content):
        out = io.StringIO()
        Console(width=80, file=out).print(changes_table(content))
        return out.getvalue()

    text = printed(content)
    for words in ("e2e", "gsm8k", *METHODS, "0.", "+9.00", "8 min 22"):
        assert words in text.replace("\u00a0", " ")
    assert "…" not in text
    older = copy.deepcopy(content)
    del older["resolution"]
    for curve in older["curves"]:
        for part in (*curve["points"], *filter(None, curve["chosen"].values())):
            del part["flips"]
        for point in curve["points"]:
            for key in ("whole_preparation_seconds", "anchor_tokens", "written_tokens"):
                (point["cost"] or {}).pop(key, None)
    text = printed(older).replace("\u00a0", " ")
    assert "≥ 9 min 2 s" in text  # 442 s of training, and the 100 s that one of its runs prepared
    assert "≥ 6 min 42 s" in text and "≥ 120 K" in text


@pytest.mark.parametrize(("value", "text"), [(1.0, "1.00"), (0.0123, "0.01"), (0.00123, "0.0012"), (1e-9, "<0.0001")])
def test_p_values_as_text(value, text):
    assert p_value(value) == text


def test_the_command_takes_a_comparison(content, tmp_path):
    testing = pytest.importorskip("typer.testing")
    from cofitune_fast.cli import app

    (tmp_path / "comparison.json").write_text(json.dumps(content), encoding="utf-8")
    result = testing.CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "comparison.html" in result.output and "CoFiTune" in result.output
    assert len(list(tmp_path.glob("*.png"))) == 8


@pytest.mark.parametrize("few", [
    {"methods": {"full SFT": METHODS["full SFT"]}, "rates": (1e-4,), "seeds": (1,)},
    {"methods": {"full SFT": METHODS["full SFT"]}, "seeds": (1, 2)},
    {"methods": {"full SFT": METHODS["full SFT"], "LoRA": METHODS["LoRA"]}, "rates": (1e-4,), "drift": False},
])  # fmt: skip
def test_small_comparisons_have_a_page_too(few, tmp_path):
    content, _ = comparison(tasks=("e2e",), gaps=False, items=20, **few)
    paths = write_report(content, tmp_path)
    assert len(paths["png"]) == 4 and paths["html"].is_file()


def test_without_a_run_there_is_a_page_without_pictures(tmp_path):
    from cofitune_fast.compare.curves.curves import curves_and_verdicts

    content, values = comparison(tasks=("e2e",), gaps=False, items=20, judged=False)
    for run in content["runs"]:
        run |= {"state": "missing", "valid": None, "test": None, "cost": None}
    content |= curves_and_verdicts(content, values)
    paths = write_report(content, tmp_path)
    assert paths["png"] == [] and "No run on e2e is done yet." in paths["html"].read_text(encoding="utf-8")
    comparison_table(content)


def test_names_of_files_are_plain_and_differ():
    assert slugs({"tasks": ["E2E NLG", "gsm8k", "a/b", "a b", "?"]}) == {
        "E2E NLG": "e2e-nlg", "gsm8k": "gsm8k", "a/b": "a-b-3", "a b": "a-b-4", "?": "task-5"}


def test_runs_that_are_not_done_are_listed(content):
    assert gaps(content)[0] == "full SFT on e2e, failed: the loss became NaN at step 40 (4e-4 seed 2)"
    assert "LoRA on gsm8k, missing: not run yet (1e-4 seed 3)" in gaps(content)


@pytest.mark.parametrize(("change", "words"), [
    (lambda c: c.pop("curves"), "it has no list `curves`, which the same cofitune compare adds"),
    (lambda c: c["runs"][0].update(state="half"), "runs[0].state must be 'done', 'missing' or 'failed', not 'half'"),
    (lambda c: c["runs"][0].update(method="DoRA"), "it names 'DoRA' as the method of runs[0], which is not one of"),
    (lambda c: c["methods"].append(c["methods"][0]), "methods holds the name 'full SFT' twice"),
    (lambda c: c["curves"][0]["frontier"]["vers"].append(7), "curves[0] names the point 7, but has 4"),
    (lambda c: c["curves"][0]["points"][1]["test"]["spec"].update(low=1), "points[1].test.spec is an interval from 1"),
    (lambda c: c["verdicts"][0]["rows"][0].update(loss=None), "its `loss` is not an interval"),
    (lambda c: c["verdicts"][0].update(sentence=""), "verdicts[0].sentence must be a text that is not empty"),
    (lambda c: c.update(base={}), "base.model is missing"),
])  # fmt: skip
def test_each_flaw_is_named(content, change, words, tmp_path):
    flawed = copy.deepcopy(content)
    change(flawed)
    with pytest.raises(CofituneError) as caught:
        write_report(flawed, tmp_path)
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_no_interval_is_drawn_out_of_nothing(content):
    """Two seeds of three know little; their crosses may leave the frame, but the frame is that of the points."""
    (axes,) = drawn(plane, content, "gsm8k", "vers").axes
    low, high = axes.get_ylim()
    values = [point["test"]["vers"]["value"] for curve in content["curves"] if curve["task"] == "gsm8k"
              for point in curve["points"]]
    assert low < min(values) and max(values) < high
    assert high - low < 6 * (max(values) - min(values)) and math.isfinite(high)
