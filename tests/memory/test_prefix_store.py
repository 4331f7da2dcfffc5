"""The files of the prefix cache: exact, shared, bounded, and never trusted when damaged."""

import errno
import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch

from cofitune_fast.errors import CofituneError
from cofitune_fast.memory.prefix_store import INDEX, STATES, PrefixStore
from cofitune_fast.memory.settings import MemorySettings, parse_size

HIDDEN = 6


def open_store(folder, limit=10**9, dtype=torch.bfloat16):
    return PrefixStore(folder, dtype, HIDDEN, limit)


def row(number, tokens=5, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(number)
    return number.to_bytes(16, "big"), torch.randn(tokens, HIDDEN, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_rows_come_back_bit_for_bit_also_in_another_process_later(tmp_path, dtype):
    store = open_store(tmp_path / "a", dtype=dtype)
    rows = [row(number, tokens=number + 1, dtype=dtype) for number in range(4)]
    store.write(rows[:2])
    store.write(rows[1:])  # one is there already
    for reader in (store, open_store(tmp_path / "a", dtype=dtype)):
        assert len(reader) == 4 and reader.has_all(key for key, _ in rows)
        for key, states in rows:
            assert torch.equal(reader.read(key), states)
        assert reader.read(b"x" * 16) is None


def test_a_row_written_twice_stands_once(tmp_path):
    store = open_store(tmp_path / "a")
    store.write([row(1)])
    size = (tmp_path / "a" / STATES).stat().st_size
    other = open_store(tmp_path / "a")
    other.write([row(1), row(2)])
    assert (tmp_path / "a" / STATES).stat().st_size == 2 * size
    store.write([row(2)])  # written by the other since
    assert (tmp_path / "a" / STATES).stat().st_size == 2 * size


@pytest.mark.parametrize("file, cut", [(STATES, 1), (STATES, 61), (INDEX, 1), (INDEX, 39)])
def test_a_truncated_file_loses_its_end_and_takes_rows_again(tmp_path, file, cut):
    """As a killed process or a full disk leaves it."""
    store = open_store(tmp_path / "a")
    rows = [row(number) for number in range(4)]
    store.write(rows)
    path = tmp_path / "a" / file
    path.write_bytes(path.read_bytes()[:-cut])
    damaged = open_store(tmp_path / "a")
    assert 0 < len(damaged) < 4
    for key, states in rows:
        known = damaged.read(key)
        assert known is None or torch.equal(known, states)
    damaged.write(rows)
    for reader in (damaged, open_store(tmp_path / "a")):
        assert all(torch.equal(reader.read(key), states) for key, states in rows)


@pytest.mark.parametrize("file", [STATES, INDEX])
@pytest.mark.parametrize("place", [0, 17, 70, 100])
def test_a_changed_byte_is_never_read(tmp_path, file, place):
    store = open_store(tmp_path / "a")
    rows = [row(number) for number in range(4)]
    store.write(rows)
    path = tmp_path / "a" / file
    raw = bytearray(path.read_bytes())
    raw[place] ^= 0x10
    path.write_bytes(raw)
    damaged = open_store(tmp_path / "a")
    known = [damaged.read(key) for key, _ in rows]
    assert sum(states is None for states in known) == 1
    assert all(states is None or torch.equal(states, rows[i][1]) for i, states in enumerate(known))
    damaged.write(rows)
    assert all(torch.equal(damaged.read(key), states) for key, states in rows)


def _write_many(folder, start):
    store = open_store(folder)
    for number in range(start, start + 20):
        store.write([row(number)])


def test_processes_share_a_store(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write_many, args=(tmp_path / "a", start)) for start in (0, 10)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    store = open_store(tmp_path / "a")
    assert len(store) == 30
    assert all(torch.equal(store.read(row(number)[0]), row(number)[1]) for number in range(30))


def test_a_store_that_another_process_deletes_meanwhile_stops_nobody(tmp_path, monkeypatch):
    open_store(tmp_path / "b").write([row(1)])
    store, iterdir = open_store(tmp_path / "a"), Path.iterdir

    def deleted_before_it_is_listed(folder):
        if folder == tmp_path / "b":
            shutil.rmtree(folder)
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", deleted_before_it_is_listed)
    store.write([row(2)])
    assert not (tmp_path / "b").exists()
    assert store.failure is None and torch.equal(store.read(row(2)[0]), row(2)[1])


def test_the_store_used_longest_ago_makes_room(tmp_path):
    import os

    row_bytes = 5 * HIDDEN * 2
    for number, name in enumerate(("old", "older")):
        open_store(tmp_path / name).write([row(number)])
        os.utime(tmp_path / name / INDEX, (1000 - number, 1000 - number))
    size = sum(file.stat().st_size for name in ("old", "older") for file in (tmp_path / name).iterdir())
    store = open_store(tmp_path / "new", limit=size + row_bytes)
    store.write([row(7)])
    assert store.failure is None and torch.equal(store.read(row(7)[0]), row(7)[1])
    assert not (tmp_path / "older").exists() and (tmp_path / "old").exists()


def test_beyond_its_limit_a_store_takes_nothing_and_says_so(tmp_path):
    store = open_store(tmp_path / "a", limit=200)
    store.write([row(1)])
    store.write([row(2, tokens=50)])
    assert store.failure is not None and "limit" in store.failure
    assert torch.equal(store.read(row(1)[0]), row(1)[1]) and store.read(row(2)[0]) is None


def test_a_full_disk_is_said_and_nothing_is_raised(tmp_path, monkeypatch):
    store = open_store(tmp_path / "a")
    store.write([row(1)])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PrefixStore, "_make_room", full)
    store.write([row(2)])
    assert "No space left on device" in store.failure
    assert torch.equal(store.read(row(1)[0]), row(1)[1])


def test_room_is_left_for_the_files_of_the_run(tmp_path, monkeypatch):
    store = open_store(tmp_path / "a")
    store.write([row(1)])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 96 * 10**7, 4 * 10**7))
    store.write([row(2)])
    assert store.failure.endswith("a has 40 MB left, which are for the run's own files")
    assert torch.equal(store.read(row(1)[0]), row(1)[1]) and store.read(row(2)[0]) is None


def test_only_stores_are_deleted_to_make_room(tmp_path):
    open_store(tmp_path / "old").write([row(1)])
    (tmp_path / "mine").mkdir()
    for name in ("about.json", INDEX, "a novel.txt"):
        (tmp_path / "mine" / name).write_text("x" * 500)
    open_store(tmp_path / "new", limit=800).write([row(number, tokens=60) for number in (2,)])
    assert not (tmp_path / "old").exists() and (tmp_path / "mine" / "a novel.txt").exists()


@pytest.mark.parametrize("text, size", [
    ("20GiB", 20 * 2**30), ("24 GB", 24 * 10**9), ("1.5MiB", 3 * 2**19), ("500mb", 5 * 10**8), ("4096", 4096), (17, 17),
    ("12B", 12),
])
def test_sizes(text, size):
    assert parse_size(text, "memory.x") == size


@pytest.mark.parametrize("text", ["", "GiB", "-3GB", "0", "20 gigs", "1e3", "nan"])
def test_what_is_no_size_is_named(text):
    with pytest.raises(CofituneError, match=r"memory\.x is .*write a size such as 20GiB"):
        parse_size(text, "memory.x")


def test_settings_name_their_choices():
    with pytest.raises(CofituneError, match=r"memory\.packing is 'maybe'; choose one of auto, on, off"):
        MemorySettings(packing="maybe")
