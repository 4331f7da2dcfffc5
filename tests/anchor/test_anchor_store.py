"""The anchor's file: believed only if it is whole, and never a reason to stop."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import make_tiny_model

from cofitune_fast import files
from cofitune_fast.anchor.store import BaseRow, read_or_make


def rows():
    generator = torch.Generator().manual_seed(0)
    return [BaseRow([4 + number] * (6 + number), 2, "row", ids=torch.full((4 + number, 3), number, dtype=torch.int32),
                    log_p=torch.randn(4 + number, 3, generator=generator),
                    target_log_p=torch.randn(4 + number, generator=generator)) for number in range(3)]


def opened(path):
    """The rows, and whether they were made anew."""
    made = []
    found, _ = read_or_make(make_tiny_model(), path, BaseRow, lambda: made.append(1) or rows(), {"a": 1})
    assert [row.input_ids for row in found] == [row.input_ids for row in rows()]
    for row, expected in zip(found, rows(), strict=True):
        for name in ("ids", "log_p", "target_log_p"):
            assert torch.equal(getattr(row, name), getattr(expected, name))
    return bool(made)


@pytest.mark.parametrize("part", ["input_ids", "lengths", "ids", "log_p", "target_log_p"])
def test_a_flipped_bit_is_found_and_the_file_is_made_again(tmp_path, part):
    path = tmp_path / "a.safetensors"
    assert opened(path) and not opened(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors[part].view(torch.uint8).view(-1)[1] ^= 1
    save_file(tensors, path, metadata)
    assert opened(path) and not opened(path)


@pytest.mark.parametrize("change", [
    {"lengths": torch.tensor([[10**9, 2]], dtype=torch.int32)}, {"lengths": torch.tensor([[6, -2]], dtype=torch.int32)},
    {"ids": torch.zeros(1, 3, dtype=torch.int32)}, {"input_ids": torch.full((21,), -1, dtype=torch.int32)},
], ids=["long", "negative", "short", "no token"])
def test_the_form_of_a_file_without_a_checksum_is_checked(tmp_path, change):
    path = tmp_path / "a.safetensors"
    opened(path)
    tensors = load_file(path)
    save_file(tensors, path, {"seconds": "1"})
    assert not opened(path)
    save_file({**tensors, **change}, path, {"seconds": "1"})
    assert opened(path)


def test_a_cache_that_cannot_be_written_is_said_before_the_rows_are_made(tmp_path, caplog):
    (tmp_path / "file").write_text("a file where the cache's folder should be")
    said = []
    found, _ = read_or_make(make_tiny_model(), tmp_path / "file" / "a.safetensors", BaseRow,
                            lambda: said.append(caplog.text) or rows(), {})
    assert len(found) == 3 and "is not kept, and is made again by the next run: " in said[0]


def test_a_disk_that_fills_meanwhile_is_no_reason_to_stop(tmp_path, monkeypatch, caplog):
    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    assert opened(tmp_path / "a.safetensors")
    assert "a.safetensors cannot be written (No space left on device)" in caplog.text
    assert not list(tmp_path.iterdir())
