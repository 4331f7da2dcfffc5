"""Each broken report is refused in a sentence that says where and what."""

from __future__ import annotations

import json
import math

import pytest
from synthetic_report import failed_method, method, node, synthetic_report

from cofitune_fast.artefacts import checked
from cofitune_fast.errors import CofituneError
from cofitune_fast.report import read_report
from cofitune_fast.report.read import plain_json


def broken(change) -> str:
    report = synthetic_report()
    change(report)
    with pytest.raises(CofituneError) as caught:
        checked("report", report, "r.json")
    return str(caught.value)


def test_a_good_report_keeps_every_number(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(synthetic_report()))
    read = read_report(path)
    for found, given in zip(read["methods"][1:], synthetic_report()["methods"][1:], strict=True):
        assert {key: found[key] for key in given} == given  # but for the base, which has no learning rate
    for found, given in zip(read["search"]["nodes"], synthetic_report()["search"]["nodes"], strict=True):
        assert {key: found[key] for key in given} == given


def test_optional_parts_may_be_absent():
    read = checked("report", {"base": {"model": "m"}, "methods": [{"name": "base"}]})
    assert read["search"] is None and read["importance"] is None and read["checks"] == [] and read["notes"] == []
    assert math.isnan(read["methods"][0]["uni"]) and math.isnan(read["base"]["parameters"])


def test_a_report_says_of_each_method_whether_it_failed_and_of_itself_whether_it_is_complete():
    old = checked("report", synthetic_report())
    assert {row["state"] for row in old["methods"]} == {"done"} and old["complete"] is True
    new = checked("report", {"base": {"model": "m"}, "complete": False, "methods": [failed_method("full SFT", "why")]})
    (row,) = new["methods"]
    assert (row["state"], row["why"], new["complete"]) == ("failed", "why", False)
    assert math.isnan(row["uni"]) and math.isnan(row["seconds"]) and row["region"] == "full"


def test_checking_leaves_the_given_report_alone():
    report = {"base": {"model": "m"}, "methods": [{"name": "base", "spec": None}]}
    checked("report", report)
    assert report == {"base": {"model": "m"}, "methods": [{"name": "base", "spec": None}]}


def test_files_that_are_no_report(tmp_path):
    with pytest.raises(CofituneError, match=r"No report at .*absent\.json: the file does not exist"):
        read_report(tmp_path / "absent.json")
    (tmp_path / "cut.json").write_text('{"base": ')
    with pytest.raises(CofituneError, match="cannot be read as JSON"):
        read_report(tmp_path / "cut.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(CofituneError, match=r"list\.json cannot be used: it must be a JSON object .* not list"):
        read_report(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: (r.pop("methods"), r.pop("search")), "The report r.json cannot be used: it has no list `methods`"),
        (lambda r: r["base"].pop("model"), "base.model is missing"),
        (lambda r: r["methods"][2].pop("name"), "methods[2].name is missing"),
        (lambda r: r["methods"][2].update(name=""), "methods[2].name must be a text that is not empty"),
        (
            lambda r: r["methods"][2].update(spec=1.7, uni=None),
            "methods[2].spec is 1.7, but must lie between 0 and 1; put that right or make the report anew.",
        ),
        (lambda r: r["methods"][2].update(vers="high"), "methods[2].vers must be a number or null, not 'high'"),
        (lambda r: r["methods"][2].update(spec=True), "methods[2].spec must be a number or null, not True"),
        (lambda r: r["methods"][2].update(uni_se=-0.1), "methods[2].uni_se is -0.1, but cannot be negative"),
        (lambda r: r["methods"][2].update(uni=1.2), "methods[2] has a `uni` of 1.2, but spec + vers is 0.943"),
        (lambda r: r["methods"].append(method("LoRA", 0.1, 0.1)), "methods holds the name 'LoRA' twice"),
        (lambda r: r["methods"][0].update(details=[1]), "methods[0].details must be a JSON object"),
        (lambda r: r["methods"][2].update(state="half"), "methods[2].state must be 'done' or 'failed', not 'half'"),
        (lambda r: r["methods"][2].update(state="failed"), "methods[2] has failed, but has scores"),
        (lambda r: r.update(complete="no"), "complete must be true or false, not 'no'"),
        (lambda r: r["search"].update(chosen="zz"), "search names 'zz' as the chosen node, which is not the id"),
        (
            lambda r: r["search"]["nodes"].append(node("g", "zz", 3, 0.1, 0.1)),
            "search names 'zz' as the parent of nodes[6], which is not the id of any node",
        ),
        (lambda r: r["search"]["nodes"][0].update(parent="b"), "which must be above its parent's level 1"),
        (lambda r: r["search"]["nodes"][0].update(level="one"), "nodes[0].level must be a whole number, not 'one'"),
        (lambda r: r["search"]["nodes"][0].update(id="b"), "search.nodes holds the id 'b' twice"),
        (lambda r: r["search"]["nodes"][0].update(id=None), "search.nodes[0].id must be a text or a number"),
        (lambda r: r["importance"]["layers"][1].pop("layer"), "importance.layers[1].layer is missing"),
        (lambda r: r["importance"]["layers"][1].update({"attn.head": [0, "x"]}), "layers[1].attn.head[1] must be a"),
        (lambda r: r["checks"][0].update(passed="yes"), "checks[0].passed must be true or false, not 'yes'"),
        (lambda r: r["notes"].append(3), "notes[1] must be a text, not 3"),
    ],
)
def test_each_flaw_is_named(change, words):
    assert words in broken(change)


def test_missing_numbers_become_null_in_json():
    text = json.dumps(plain_json({"a": [float("nan"), 1.5, {"b": float("inf")}], "c": True}), allow_nan=False)
    assert json.loads(text) == {"a": [None, 1.5, {"b": None}], "c": True}
