"""Digests of the data that a run depends on."""

from __future__ import annotations

import hashlib

import pytest

from cofitune_fast.trials import TrialData
from cofitune_fast.trials.data import content_digest, data_digest


def test_hidden_files_of_a_folder_do_not_count(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    before = content_digest(tmp_path)
    line = f"a.jsonl {hashlib.sha256(b'{}' + chr(10).encode()).hexdigest()}"
    assert before == hashlib.sha256(line.encode()).hexdigest()
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    assert content_digest(tmp_path) == before == data_digest(str(tmp_path))
    (tmp_path / "b.jsonl").write_text("{}\n")
    assert content_digest(tmp_path) != before


def test_a_hub_data_set_counts_by_its_rows(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": "hi", "completion": "yo"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: datasets.Dataset.from_list(rows))
    first = data_digest("own/data:train")
    assert first == data_digest("other/copy:train")
    rows.append({"prompt": "hi", "completion": "no"})
    assert data_digest("own/data:train") != first
    assert [row.response for row in TrialData(train="own/data:train").examples("train")] == ["yo", "no"]


def test_bad_rows_are_left_out_of_the_training_rows_when_asked_for(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text('{"prompt": "hi", "completion": "yo"}\n{"prompt": "hi", "completion": ""}\n')
    assert [row.where for row in TrialData(train=str(file), on_bad_row="skip").examples("train")] == [f"{file}:1"]
