"""Loading: what works, and one sentence for what does not."""

import pytest
import torch

from cofitune_fast.errors import CofituneError
from cofitune_fast.models import load_model
from cofitune_fast.models.fingerprint import fingerprint


def test_a_folder_loads_with_its_bytes_and_a_pad_token(tiny_model, tiny_model_folder):
    loaded = load_model(tiny_model_folder)
    assert fingerprint(loaded.model) == fingerprint(tiny_model)
    assert loaded.tokenizer.pad_token == "<pad>" and not loaded.model.training
    assert load_model(tiny_model_folder, dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(CofituneError, match=r"is not a model folder: it has no config.json"):
        load_model(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(CofituneError, match=r"No model at .*nowhere: the folder does not exist"):
        load_model(tmp_path / "nowhere")


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CofituneError, match="is a file, not a model folder"):
        load_model(tmp_path / "notes.txt")


def test_a_folder_with_broken_weights(tiny_model_folder):
    weights = tiny_model_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CofituneError, match="cannot be loaded"):
        load_model(tiny_model_folder)


def test_a_gguf_file_that_is_cut_off(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setenv("COFITUNE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x00" * 40)
    with pytest.raises(CofituneError, match=r"GGUF file .*cannot be read"):
        load_model(file)
    assert not list((tmp_path / "cache" / "gguf").glob("*"))


def test_a_gguf_file_that_is_not_there(tmp_path):
    with pytest.raises(CofituneError, match="No GGUF file at"):
        load_model(tmp_path / "model.gguf")


def test_an_unknown_dtype(tiny_model_folder):
    with pytest.raises(CofituneError, match="dtype 'int4' is not known; choose one of auto"):
        load_model(tiny_model_folder, dtype="int4")
