"""How artefacts are read: completed and checked by their types, with one sentence for what is wrong."""

from __future__ import annotations

import copy
import json
import sys

import pytest
from artefact_cases import assert_described
from synthetic_comparison import METHODS, RATES, comparison
from synthetic_report import failed_method, racing_search, search_only, synthetic_report

from cofitune_fast.artefacts import checked, read_artefact
from cofitune_fast.errors import CofituneError


def as_text(content):
    """The content in a form in which NaN equals NaN."""
    return json.dumps(content, sort_keys=True)


@pytest.mark.parametrize("content", [
    synthetic_report(), synthetic_report(search=racing_search()), search_only(),
    synthetic_report(methods=[failed_method("full SFT", "why")], complete=False),
], ids=["report", "with a race", "search", "with a failure"])  # fmt: skip
def test_a_report_is_left_alone_kept_whole_and_stays_the_same_when_it_is_read_again(content, tmp_path):
    before = copy.deepcopy(content)
    read = checked("report", content)
    assert content == before and read is not content
    assert as_text(checked("report", read)) == as_text(read)
    (tmp_path / "report.json").write_text(json.dumps(content))
    assert as_text(read_artefact("report", tmp_path / "report.json")) == as_text(read)


def test_what_the_type_does_not_name_is_kept_and_seen_by_the_tests_of_writers():
    content = synthetic_report(search=racing_search())
    assert_described("report", content)
    content["methods"][2]["colour"] = content["search"]["nodes"][1]["rungs"][0]["colour"] = "red"
    read = checked("report", content)
    assert read["methods"][2]["colour"] == read["search"]["nodes"][1]["rungs"][0]["colour"] == "red"
    with pytest.raises(AssertionError, match=r"'methods', 2, 'colour'.*'rungs', 0, 'colour'"):
        assert_described("report", content)


def test_a_comparison_of_known_methods_is_described():
    some = {name: METHODS[name] for name in ("full SFT", "LoRA")}
    assert_described("comparison", comparison(methods=some, rates=RATES[:2], tasks=("e2e",), items=20)[0])


def test_whole_numbers_stay_whole():
    report = checked("report", synthetic_report())
    assert isinstance(report["base"]["parameters"], int) and isinstance(report["methods"][0]["seconds"], float)


@pytest.mark.parametrize("kind", ["report", "comparison", "analysis"])
def test_without_pydantic_one_sentence_says_what_to_install(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(CofituneError, match=rf"Reading a {kind} needs pydantic; .*'cofitune-fast\[report\]'"):
        checked(kind, {})


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CofituneError, match=r"No analysis at .*absent\.json: the file does not exist"):
        read_artefact("analysis", tmp_path / "absent.json")


def test_the_sentence_names_file_place_flaw_and_remedy():
    with pytest.raises(CofituneError) as caught:
        checked("comparison", {"base": {"model": ""}, "tasks": ["e2e"], "methods": [], "runs": []}, "c.json")
    assert str(caught.value) == ("The comparison c.json cannot be used: base.model must be a text that is not empty; "
                                 "put that right or make the comparison anew.")
