"""Import of the authors' three files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import make_tiny_model

from cofitune_fast.errors import CofituneError
from cofitune_fast.importance import import_authors_importance
from cofitune_fast.regions import resolve_layout

SHAPES = {"head_impt.npy": (4, 4), "intermediate_impt.npy": (4, 48), "output_impt.npy": (4, 32)}


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        np.save(tmp_path / name, random.normal(size=shape).astype(np.float32))
    return tmp_path


@pytest.fixture
def layout():
    return resolve_layout(make_tiny_model())


def test_files_become_an_importance(folder, layout):
    importance = import_authors_importance(folder, layout, base=("their model", "ab" * 32))
    names = {"attn.head": "head_impt", "ffn.neuron": "intermediate_impt", "ffn.output": "output_impt"}
    assert importance.scores.keys() == names.keys() and importance.layers == (0, 1, 2, 3)
    for kind, name in names.items():
        torch.testing.assert_close(importance.scores[kind], torch.from_numpy(np.load(folder / f"{name}.npy")).abs())
    importance.check("ab" * 32)
    assert len(importance.masks(make_tiny_model(), "all@all", "paper")) == 28
    importance.save(folder / "importance.safetensors")


def test_a_missing_file_is_named(folder, layout):
    (folder / "output_impt.npy").unlink()
    with pytest.raises(CofituneError, match=r"No importance file of the authors at .*output_impt.npy"):
        import_authors_importance(folder, layout)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 47), np.float32), r"shape \[4, 48\] for this model, not float32 \[4, 47\]"),
        (np.zeros((4, 48), np.int64), "not int64"),
        (np.full((4, 48), np.nan, np.float32), "ffn.neuron of layer 0 are not all finite"),
        (np.array([{"pickled": 1}]), "cannot be read as a plain NumPy array"),
    ],
)
def test_wrong_content_is_refused(folder, layout, array, words):
    np.save(folder / "intermediate_impt.npy", array, allow_pickle=True)
    with pytest.raises(CofituneError, match=words):
        import_authors_importance(folder, layout)


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_damaged_files_are_refused(folder, layout, content):
    path = folder / "head_impt.npy"
    path.write_bytes(path.read_bytes()[:-8] if content is None else content)
    with pytest.raises(CofituneError, match=r"head_impt.npy cannot be read as a plain NumPy array"):
        import_authors_importance(folder, layout)


def test_an_archive_is_refused(folder, layout):
    with open(folder / "head_impt.npy", "wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(CofituneError, match="not NpzFile"):
        import_authors_importance(folder, layout)
