"""The journal: what it keeps, and what it refuses without losing anything."""

from __future__ import annotations

import json

import pytest

from cofitune_fast.errors import CofituneError
from cofitune_fast.search import Journal

SETTINGS = {"seed": 1, "training": {"learning_rate": 0.1, "steps": 3}}


def test_records_come_back_in_order(tmp_path):
    with Journal(tmp_path, SETTINGS) as journal:
        journal.append("rung", {"id": "a", "end": 0.5})
        journal.append("base", {"scores": {"uni": 1.0}})
        journal.append("rung", {"id": "a", "end": 1.0})
    with Journal(tmp_path, SETTINGS) as journal:
        assert [record["end"] for record in journal.of_kind("rung")] == [0.5, 1.0]
        assert journal.of_kind("base") == [{"kind": "base", "scores": {"uni": 1.0}}]


def test_a_changed_setting_is_refused_with_the_difference(tmp_path):
    with Journal(tmp_path, SETTINGS) as journal:
        journal.append("rung", {"id": "a"})
    before = journal.path.read_bytes()
    changed = {**SETTINGS, "training": {"learning_rate": 0.2, "steps": 3}}
    with pytest.raises(CofituneError, match=r"other settings \(training.learning_rate was 0.1, is 0.2\); restore them"):
        Journal(tmp_path, changed)
    with pytest.raises(CofituneError, match=r"\(seed was 1, is 2; training.steps was 3, is not set\)"):
        Journal(tmp_path, {"seed": 2, "training": {"learning_rate": 0.1}})
    assert journal.path.read_bytes() == before
    with Journal(tmp_path, SETTINGS):  # the lock was given back
        pass


def test_two_searches_on_one_folder(tmp_path):
    with Journal(tmp_path, {}), pytest.raises(CofituneError, match="Another search is running in"):
        Journal(tmp_path, {})


def test_a_journal_of_another_version(tmp_path):
    (tmp_path / "journal.jsonl").write_text(json.dumps({"kind": "search", "version": 2, "settings": {}}) + "\n")
    with pytest.raises(CofituneError, match="is of version 2, this program writes 4; choose another output folder"):
        Journal(tmp_path, {})


@pytest.mark.parametrize("line", ["{broken", "[1]", '{"no": "kind"}'])
def test_a_broken_line_in_the_middle(tmp_path, line):
    with Journal(tmp_path, {}) as journal:
        journal.append("rung", {"id": "a"})
    lines = journal.path.read_text().splitlines(keepends=True)
    journal.path.write_text("".join([lines[0], line + "\n", *lines[1:]]))
    with pytest.raises(CofituneError, match=r"Line 2 of the journal .* is broken"):
        Journal(tmp_path, {})


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut_off_goes(tmp_path, cut):
    with Journal(tmp_path, {}) as journal:
        journal.append("rung", {"id": "a"})
        whole = journal.path.read_bytes()
        journal.append("rung", {"id": "b", "scores": {"uni": 0.123456789, "vers": 0.5}})
    content = journal.path.read_bytes()
    journal.path.write_bytes(content[:-cut])
    with Journal(tmp_path, {}) as again:
        assert [record["id"] for record in again.records] == ["a"]
    assert journal.path.read_bytes() == whole


def test_a_new_journal_is_in_its_folder_on_the_disk_before_the_search_goes_on(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("cofitune_fast.search.journal.sync",
                        lambda path: synced.append((path, (path / "journal.jsonl").read_text())))
    with Journal(tmp_path / "run", {"a": 1}) as journal:
        ((path, content),) = synced
        assert path == tmp_path / "run" and json.loads(content)["settings"] == {"a": 1}
        journal.append("rung", {"id": "x"})
    assert len(synced) == 1  # a line more changes no folder
