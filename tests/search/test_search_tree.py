"""The greedy search on made-up scores: what it tries, what it keeps, and that finished nodes stay finished."""

import json

import pytest

from cofitune_fast.errors import CofituneError
from cofitune_fast.search import Journal, space_levels, tree_search
from cofitune_fast.search.tree import SCORES, _short

LEVELS = space_levels("paper")


class Trials:
    """Uni by region text; counts the trials made, and can break off after some."""

    def __init__(self, uni=None, stop_after=None):
        self.uni, self.stop_after, self.tried = uni or {}, stop_after, []

    def __call__(self, candidate):
        if self.stop_after is not None and len(self.tried) == self.stop_after:
            raise KeyboardInterrupt
        region = str(candidate.region)
        self.tried.append(region)
        uni = self.uni.get(region, 1.0)
        scores = {key: uni if key == "uni" else uni / 2 for key in SCORES}
        return {**scores, **{f"{key}_se": 0.01 for key in SCORES}}, {"trained_parameters": len(region), "seconds": 2.0}


UNI = {"ffn.up+ffn.down@25%-75%": 1.2, "ffn.up+ffn.down@25%-50%": 1.3, "ffn.up@25%-50%": 1.25}


def search(folder, trial, settings=None):
    with Journal(folder, settings or {"seed": 1}) as journal:
        return tree_search(LEVELS, 32, trial, journal)


def test_the_best_of_each_level_is_refined_and_the_best_of_all_chosen(tmp_path):
    trial = Trials(UNI)
    result = search(tmp_path, trial)
    assert trial.tried[6:] == ["ffn.up+ffn.down@25%-50%", "ffn.up+ffn.down@50%-75%", "ffn.up@25%-50%",
                               "ffn.down@25%-50%"]
    assert result.chosen.region == "ffn.up+ffn.down@25%-50%"
    assert [node.region for node in result.nodes if node.best_of_level] == [
        "ffn.up+ffn.down@25%-75%", "ffn.up+ffn.down@25%-50%", "ffn.up@25%-50%"]
    assert result.seconds == 20.0
    report = result.chosen.to_report()
    assert report["uni"] == 1.3 and report["uni_se"] == 0.01 and "scores" not in report


def test_of_equal_scores_the_smaller_region_wins(tmp_path):
    assert search(tmp_path, Trials()).chosen.region == "ffn.up@0%-25%"


@pytest.mark.parametrize("stop_after", range(1, 10))
def test_a_search_broken_off_anywhere_resumes_to_the_same_result(tmp_path, stop_after):
    whole = search(tmp_path / "whole", Trials(UNI))
    first, second = Trials(UNI, stop_after), Trials(UNI)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "broken", first)
    resumed = search(tmp_path / "broken", second)
    assert first.tried + second.tried == [node.region for node in whole.nodes]
    assert resumed == whole
    assert (tmp_path / "broken" / "journal.jsonl").read_text() == (tmp_path / "whole" / "journal.jsonl").read_text()


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    search(tmp_path, Trials(UNI))
    path = tmp_path / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    again = Trials(UNI)
    search(tmp_path, again)
    assert again.tried == ["ffn.down@25%-50%"]
    assert path.read_bytes() == whole


def test_a_changed_setting_is_refused_with_the_difference(tmp_path):
    search(tmp_path, Trials())
    before = (tmp_path / "journal.jsonl").read_bytes()
    with pytest.raises(CofituneError, match=r"other settings \(seed was 1, is 2\); restore them"):
        search(tmp_path, Trials(), {"seed": 2})
    assert (tmp_path / "journal.jsonl").read_bytes() == before


def test_two_searches_on_one_folder(tmp_path):
    with (
        Journal(tmp_path, {}),
        pytest.raises(CofituneError, match="Another search is running in"),
        Journal(tmp_path, {}),
    ):
        pass


def test_a_journal_of_another_version(tmp_path):
    (tmp_path / "journal.jsonl").write_text(json.dumps({"kind": "search", "version": 99, "settings": {}}) + "\n")
    with pytest.raises(CofituneError, match="is of version 99, this program writes 1"), Journal(tmp_path, {}):
        pass


def test_a_broken_line_in_the_middle(tmp_path):
    search(tmp_path, Trials())
    path = tmp_path / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], "{broken\n", *lines[2:]]))
    with pytest.raises(CofituneError, match="Line 3 of the journal"), Journal(tmp_path, {"seed": 1}):
        pass


@pytest.mark.parametrize("roles, short", [
    ("attn.q+attn.k+attn.v", "attn q+k+v"), ("ffn.down", "ffn down"), ("mha", "mha"), ("mha+ffn.up", "mha+ffn.up"),
    ("attn.q+ffn.up", "attn.q+ffn.up"),
])
def test_labels_are_short(roles, short):
    assert _short(roles) == short
