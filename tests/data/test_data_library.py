"""Parquet, Arrow, saved folders and hub ids, read by the datasets library."""

from __future__ import annotations

import sys

import pytest

from cofitune_fast.data import read_examples, read_rows
from cofitune_fast.errors import CofituneError

datasets = pytest.importorskip("datasets")

ROWS = [
    {"messages": [{"role": "user", "content": "hi", "weight": None},
                  {"role": "assistant", "content": "yo", "weight": weight}],
     "tools": None, "output": None}
    for weight in (1, 1, 0)
]


@pytest.fixture
def dataset():
    return datasets.Dataset.from_list(ROWS)


def save_parquet(dataset, folder):
    dataset.to_parquet(folder / "x.parquet")
    return folder / "x.parquet"


def save_arrow(dataset, folder):
    dataset.save_to_disk(folder / "saved")
    return folder / "saved" / "data-00000-of-00001.arrow"


def save_folder(dataset, folder):
    dataset.save_to_disk(folder / "saved")
    return folder / "saved"


@pytest.mark.parametrize("save", [save_parquet, save_arrow, save_folder])
def test_files_and_folders_of_the_library(dataset, tmp_path, save):
    path = save(dataset, tmp_path)
    examples = read_examples(path, limit=2)
    assert [example.prompt for example in examples] == [[{"role": "user", "content": "hi"}]] * 2
    assert [example.where for example in examples] == [f"{path}:row 1", f"{path}:row 2"]
    with pytest.raises(CofituneError, match=r":row 3 has no assistant turn that is to be learnt"):
        read_examples(path)


def test_bytes_are_no_text(tmp_path):
    datasets.Dataset.from_list([{"prompt": b"hi", "completion": "yo"}]).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(CofituneError, match="has bytes as 'prompt'; it must be text"):
        read_examples(tmp_path / "x.parquet")


def test_splits_of_a_saved_folder(dataset, tmp_path):
    datasets.DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(tmp_path / "saved")
    assert len(read_rows(f"{tmp_path}/saved:test")) == 1
    with pytest.raises(CofituneError, match=r"has several splits; add one of train, test, as in \S+saved:train"):
        read_rows(tmp_path / "saved")
    with pytest.raises(CofituneError, match="has no split valid"):
        read_rows(f"{tmp_path}/saved:valid")


def test_hub_ids(dataset, monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return dataset if split else datasets.DatasetDict(train=dataset)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name, where in {"own/data": "own/data:train", "own/data:test": "own/data:test",
                        "own/data:main:test[:2]": "own/data:main:test[:2]"}.items():
        (row,) = read_rows(name, limit=1)
        assert row.where == f"{where}:row 1"
    assert asked == [("own/data", None, None), ("own/data", None, "test"), ("own/data", "main", "test[:2]")]


def test_what_the_library_cannot_load_is_told(monkeypatch):
    def load_dataset(*arguments, **options):
        raise ConnectionError("no network\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(CofituneError, match=r"no file or folder own/data, and .* \(ConnectionError: no network\)"):
        read_rows("own/data")
    with pytest.raises(CofituneError, match=r"own/data\.jsonl does not exist"):
        read_rows("own/data.jsonl")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CofituneError, match=r"no file or folder own/data, .*pip install 'cofitune-fast\[data\]'"):
        read_rows("own/data")
