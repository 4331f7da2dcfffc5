"""Each broken report is refused in a sentence that says where and what."""

from __future__ import annotations

import json
import math

import pytest
from synthetic_report import method, node, synthetic_report

from cofitune_fast.errors import CofituneError
from cofitune_fast.report import read_report
from cofitune_fast.report.read import plain_json
from cofitune_fast.report.run.schema import checked


def broken(change) -> str:
    report = synthetic_report()
    change(report)
    with pytest.raises(CofituneError) as caught:
        checked(report, "r.json")
    return str(caught.value)


def test_a_good_report_keeps_every_number(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(synthetic_report()))
    read = read_report(path)
    assert read["methods"][1:] == synthetic_report()["methods"][1:]  # the base has no learning rate
    for found, given in zip(read["search"]["nodes"], synthetic_report()["search"]["nodes"], strict=True):
        assert {key: found[key] for key in given} == given


def test_optional_parts_may_be_absent():
    read = checked({"base": {"model": "m"}, "methods": [{"name": "base"}]})
    assert read["search"] is None and read["importance"] is None and read["checks"] == [] and read["notes"] == []
    assert math.isnan(read["methods"][0]["uni"]) and math.isnan(read["base"]["parameters"])


def test_checking_leaves_the_given_report_alone():
    report = {"base": {"model": "m"}, "methods": [{"name": "base", "spec": None}]}
    checked(report)
    assert report == {"base": {"model": "m"}, "methods": [{"name": "base", "spec": None}]}


def test_files_that_are_no_report(tmp_path):
    with pytest.raises(CofituneError, match=r"No report at .*absent\.json: the file does not exist"):
        read_report(tmp_path / "absent.json")
    (tmp_path / "cut.json").write_text('{"base": ')
    with pytest.raises(CofituneError, match="cannot be read as JSON"):
        read_report(tmp_path / "cut.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(CofituneError, match=r"list\.json must be a JSON object .* not list"):
        read_report(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: (r.pop("methods"), r.pop("search")), "r.json: the list `methods` is missing"),
        (lambda r: r["base"].pop("model"), "base.model must be a text that is not empty"),
        (lambda r: r["methods"][2].pop("name"), "methods[2].name must be a text that is not empty"),
        (
            lambda r: r["methods"][2].update(spec=1.7, uni=None),
            "methods[2] ('LoRA'): `spec` is 1.7, but this score lies",
        ),
        (lambda r: r["methods"][2].update(vers="high"), "`vers` must be a number or null, not 'high'"),
        (lambda r: r["methods"][2].update(spec=True), "`spec` must be a number or null, not True"),
        (lambda r: r["methods"][2].update(uni_se=-0.1), "`uni_se` is -0.1, but a standard error cannot be negative"),
        (lambda r: r["methods"][2].update(uni=1.2), "`uni` is 1.2, but spec + vers is 0.943"),
        (lambda r: r["methods"].append(method("LoRA", 0.1, 0.1)), "the name 'LoRA' stands there twice"),
        (lambda r: r["methods"][0].update(details=[1]), "details must be a JSON object"),
        (lambda r: r["search"].update(chosen="zz"), "the chosen node 'zz' is not the id of any node"),
        (
            lambda r: r["search"]["nodes"].append(node("g", "zz", 3, 0.1, 0.1)),
            "its parent 'zz' is not the id of any node",
        ),
        (lambda r: r["search"]["nodes"][0].update(parent="b"), "its level 1 must be above its parent's level 1"),
        (lambda r: r["search"]["nodes"][0].update(level="one"), "`level` must be a whole number, not 'one'"),
        (lambda r: r["search"]["nodes"][0].update(id="b"), "the id 'b' stands there twice"),
        (lambda r: r["search"]["nodes"][0].update(id=None), "`id` must be a text or a number"),
        (lambda r: r["importance"]["layers"][1].pop("layer"), "layers[1]: `layer` must be the layer's number"),
        (lambda r: r["importance"]["layers"][1].update({"attn.head": [0.1, "x"]}), "must be a number or null, not 'x'"),
        (lambda r: r["checks"][0].update(passed="yes"), "('frozen tensors unchanged'): `passed` must be true or false"),
        (lambda r: r["notes"].append(3), "notes[1] must be a text, not int"),
    ],
)
def test_each_flaw_is_named(change, words):
    assert words in broken(change)


def test_missing_numbers_become_null_in_json():
    text = json.dumps(plain_json({"a": [float("nan"), 1.5, {"b": float("inf")}], "c": True}), allow_nan=False)
    assert json.loads(text) == {"a": [None, 1.5, {"b": None}], "c": True}
