"""Files and folders that are whole or absent: after an error, in threads, and in the order a power cut asks for."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cofitune_fast import files, json_text, leftovers
from cofitune_fast.errors import CofituneError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    """Set the process's umask for a test; umask(0o027) for one."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What is synced and renamed from now on, in order, by names in tmp_path; temporary names are "~"."""
    noted: list[tuple[str, ...]] = []

    def name(path) -> str:
        parts = Path(path).relative_to(tmp_path).parts
        return "/".join("~" if part.startswith(".") else part for part in parts) or "."

    def note(what, function):
        def noting(*paths):
            # On Linux the file behind a handle is a link in /proc.
            noted.append((what, *(name(os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path)
                                  for path in paths)))
            return function(*paths)
        return noting

    for what, function in (("fsync", os.fsync), ("replace", os.replace)):
        monkeypatch.setattr(os, what, note(what, function))
    return noted


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="handles are looked up in /proc")


@needs_proc
def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_block_is_left(tmp_path, calls):
    files.write_text(tmp_path / "a.txt", "a")
    assert calls == [("fsync", "~"), ("replace", "~", "a.txt"), ("fsync", ".")]


@needs_proc
def test_what_safetensors_writes_is_synced_though_it_is_another_file(tmp_path, calls):
    """It writes beside the path it is given, and renames: the handle that made the temporary file is stale."""
    with files.atomic_path(tmp_path / "a") as temporary:
        other = tmp_path / ".other"
        other.write_text("whole")
        other.rename(temporary)
        inode = temporary.stat().st_ino
    assert calls[0] == ("fsync", "~") and (tmp_path / "a").stat().st_ino == inode


@needs_proc
def test_the_whole_of_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, calls):
    with files.atomic_folder(tmp_path / "model") as folder:
        (folder / "part").mkdir()
        (folder / "part" / "a").write_text("a")
        (folder / "b").write_text("b")
    *before, replaced, last = calls
    assert sorted(before) == [("fsync", "~"), ("fsync", "~/b"), ("fsync", "~/part"), ("fsync", "~/part/a")]
    assert (replaced, last) == (("replace", "~", "model"), ("fsync", "."))


@needs_proc
def test_an_old_folder_is_deleted_only_when_the_new_one_is_on_the_disk(tmp_path, calls, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(files.shutil, "rmtree", lambda path, **options: calls.append(("delete", Path(path).exists())))
    with files.atomic_folder(tmp_path / "model"):
        pass
    assert calls == [("fsync", "~"), ("replace", "model", "~"), ("replace", "~", "model"), ("fsync", "."),
                     ("delete", True), ("delete", False)]


@needs_proc
def test_folders_made_on_the_way_are_on_the_disk_first(tmp_path, calls):
    files.write_text(tmp_path / "run" / "1" / "a", "a")
    assert sorted(calls[:2]) == [("fsync", "."), ("fsync", "run")]
    assert calls[2:] == [("fsync", "run/1/~"), ("replace", "run/1/~", "run/1/a"), ("fsync", "run/1")]


def test_a_file_system_that_cannot_sync_a_folder_is_no_error_but_a_broken_disk_is(tmp_path, monkeypatch):
    code = errno.EINVAL

    def fsync(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_text(tmp_path / "a", "a")
    assert (tmp_path / "a").read_text() == "a"
    code = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.write_text(tmp_path / "b", "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("make", [files.atomic_path, files.atomic_folder])
def test_an_error_leaves_what_was_there_and_nothing_beside_it(tmp_path, make):
    files.write_text(tmp_path / "a" / "inside" if make is files.atomic_folder else tmp_path / "a", "old")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ZeroDivisionError), make(tmp_path / "a") as temporary:
        (temporary / "inside" if temporary.is_dir() else temporary).write_text("half")
        _ = 1 / 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_replaces_the_old_one_whole(tmp_path):
    for name in ("first", "second"):
        with files.atomic_folder(tmp_path / "model") as folder:
            (folder / name).write_text(name)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o000])
def test_modes_are_those_of_ordinary_files_even_if_a_library_makes_private_ones(tmp_path, umask, mask):
    umask(mask)
    with files.atomic_path(tmp_path / "a") as temporary:
        temporary.chmod(0o600)
    with files.atomic_folder(tmp_path / "model") as folder:
        (folder / "part").mkdir(0o700)
        (folder / "part" / "b").touch(0o600)
    assert mode(tmp_path / "a") == mode(tmp_path / "model" / "part" / "b") == 0o666 & ~mask
    assert mode(tmp_path / "model") == mode(tmp_path / "model" / "part") == 0o777 & ~mask


def test_the_umask_of_the_process_is_never_touched(tmp_path, monkeypatch):
    """It belongs to all threads: set to 0 even for a moment, it makes another thread's file writable for everybody."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("os.umask was called"))
    files.write_text(tmp_path / "a", "a")
    with files.atomic_folder(tmp_path / "model") as folder:
        (folder / "b").write_text("b")


def test_threads_that_write_do_not_change_the_modes_of_others(tmp_path, umask, monkeypatch):
    umask(0o077)
    monkeypatch.setattr(os, "umask", lambda mask: (umask(mask), time.sleep(1e-3))[0])  # a race would show
    done = threading.Event()

    def write(index: int) -> None:
        for _ in range(20):
            json_text.write_json(tmp_path / f"{index}.json", {"index": index})

    def look() -> set[int]:
        seen, count = set(), 0
        while not done.is_set():
            path = tmp_path / f"seen-{count % 50}"
            path.unlink(missing_ok=True)
            path.touch()
            seen.add(mode(path))
            count += 1
        return seen

    with ThreadPoolExecutor(5) as pool:
        seen = pool.submit(look)
        writers = [pool.submit(write, index) for index in range(4)]
        for writer in writers:
            writer.result()
        done.set()
    assert seen.result() == {0o600}
    assert {mode(path) for path in tmp_path.glob("*.json")} == {0o600}


def test_many_writers_of_one_path_leave_one_whole_text(tmp_path):
    texts = [str(index) * 10_000 for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: files.write_text(tmp_path / "a", text), texts))
    assert (tmp_path / "a").read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


_KILLED = """
import os, signal, sys
from cofitune_fast import files, leftovers
kind, path, ends = sys.argv[1:]
leftovers.sweep = lambda folder: None  # else one child sweeps what another has left
if kind == "moved":
    files.os.replace = lambda old, new, real=os.replace: (
        os.kill(os.getpid(), signal.SIGKILL) if new == path or str(new) == path else real(old, new))
make = files.atomic_path if kind == "file" else files.atomic_folder
with make(path) as temporary:
    (temporary if kind == "file" else temporary / "a").write_text("half")
    if ends == "waits":
        print(flush=True)
        sys.stdin.read()
    if kind != "moved":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def _child(kind: str, path: Path, ends: str = "killed") -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", _KILLED, kind, str(path), ends], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, cwd=Path(files.__file__).parents[1])


def test_what_a_killed_process_left_is_swept_by_the_next_write_and_that_of_a_living_one_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "_SWEPT", set())
    files.write_text(tmp_path / "a", "old")
    with files.atomic_folder(tmp_path / "moved") as temporary:
        (temporary / "a").write_text("old")
    dead = [_child("file", tmp_path / "a"), _child("folder", tmp_path / "b"), _child("moved", tmp_path / "moved")]
    living = _child("folder", tmp_path / "c", "waits")
    living.stdout.readline()
    assert [child.communicate()[0] or child.returncode for child in dead] == [-9] * 3
    assert (tmp_path / "a").read_text() == "old" and not (tmp_path / "moved").exists()
    foreign = [leftovers.unused_name(tmp_path / "d"), tmp_path / ".a.0123456789ab", tmp_path / ".new-1"]
    foreign[0] = foreign[0].with_name(foreign[0].name.replace(leftovers._machine(), "00000000"))
    for path in foreign:
        path.touch()
    assert len(list(tmp_path.iterdir())) == 9  # a, one each of a, b and c, two of moved, three foreign ones

    monkeypatch.setattr(leftovers, "_SWEPT", set())
    files.write_text(tmp_path / "e", "new")
    left = {path.name for path in tmp_path.iterdir()} - {path.name for path in foreign}
    assert {name for name in left if not name.startswith(".c.")} == {"a", "e", "moved"} and len(left) == 4
    assert (tmp_path / "moved" / "a").read_text() == "old"  # its successor had not taken its place
    living.communicate(b"")
    leftovers.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "e", "moved", *(path.name for path in foreign)}


def test_a_number_that_was_given_to_a_later_process_is_not_the_owner():
    assert leftovers._lives(os.getpid(), leftovers._start(os.getpid()) or 0)
    assert not leftovers._lives(os.getpid(), 1) or leftovers._start(os.getpid()) is None


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_path_that_no_file_can_have_is_a_sentence(tmp_path, name):
    for act in (lambda path: files.write_text(path, ""), files.writable_folder, files.make_folder,
                lambda path: json_text.read_json(path, "delta"), lambda path: files.atomic_folder(path).__enter__()):
        with pytest.raises(CofituneError, match="character that no file name can hold"):
            act(tmp_path / name)


def test_a_blank_cache_variable_is_unset(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for blank in ("", " "):
        monkeypatch.setenv("COFITUNE_CACHE", blank)
        assert files.cache_folder() == tmp_path / "cofitune_fast"

def test_what_the_system_refuses_is_one_sentence_with_path_need_and_room(tmp_path, monkeypatch):
    code = errno.ENOSPC

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    for write in (lambda: json_text.write_json(tmp_path / "a", {"a": 1}), lambda: _folder(tmp_path / "a")):
        with pytest.raises(files.WriteFailed, match=r"/a cannot be written \(No space left on device\): .* are free in "
                                                    r".*; make room there, or choose another one\.$") as failed:
            write()
        assert isinstance(failed.value, CofituneError) and failed.value.errno == code
    code = errno.EROFS
    with pytest.raises(files.WriteFailed, match=r"\(Read-only file system\): 2 bytes are needed .*; make the folder"):
        files.write_text(tmp_path / "a", "ab")
    assert not list(tmp_path.iterdir())
    assert str(pickle.loads(pickle.dumps(failed.value))) == str(failed.value)  # workers send it


def _folder(path: Path) -> None:
    with files.atomic_folder(path) as folder:
        (folder / "b").write_text("b")


def test_an_error_of_a_library_in_rust_is_known_by_its_number_and_one_about_another_file_is_left_alone(tmp_path):
    with pytest.raises(files.WriteFailed, match="Disk quota exceeded"), files.atomic_path(tmp_path / "a"):
        raise RuntimeError(f"I/O error: Disk quota exceeded (os error {errno.EDQUOT})")
    with pytest.raises(FileNotFoundError), files.atomic_path(tmp_path / "a"):
        (tmp_path / "base" / "weights").read_bytes()


def test_a_folder_where_a_file_is_in_the_way(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(files.WriteFailed, match=r"a/b/c cannot be written|a/b cannot be written"):
        files.write_text(tmp_path / "a" / "b" / "c", "")


def test_a_link_stays_a_link_and_its_folder_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "old").write_text("")
    _folder(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and [file.name for file in (tmp_path / "disk").iterdir()] == ["b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


@pytest.mark.parametrize("said", [True, False], ids=["seen", "found out by the rename"])
def test_a_mount_that_cannot_be_renamed_is_filled(tmp_path, monkeypatch, said):
    mount, replace = tmp_path / "mount", os.replace
    (mount / "lost+found").mkdir(parents=True)
    (mount / "old").write_text("")

    def busy(source, target):
        if Path(source) == mount:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(Path, "is_mount", lambda path: said and path == mount)
    _folder(mount)
    assert sorted(file.name for file in mount.iterdir()) == ["b", "lost+found"]
    assert [path.name for path in tmp_path.iterdir()] == ["mount"]


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    _folder(tmp_path / "a")
    replace, calls = os.replace, []

    def second(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return replace(source, target)

    monkeypatch.setattr(os, "replace", second)
    with pytest.raises(files.WriteFailed):
        _folder(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a" / "b").exists()


def test_room_is_asked_for_before_the_work(tmp_path):
    files.require_room(tmp_path / "not" / "yet", 10**6, "the delta")
    with pytest.raises(CofituneError, match=r"no room for the delta in .*not: 1,000,000,000 GB are needed and .* "
                                            r"are free in .*; make room there, or choose"):
        files.require_room(tmp_path / "not", 10**18, "the delta")


@pytest.mark.parametrize("environment, folder", [
    ({"COFITUNE_CACHE": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/c"),
    ({"COFITUNE_CACHE": "~/c", "HOME": "/h"}, "/h/c"),
    ({"COFITUNE_CACHE": "", "XDG_CACHE_HOME": "/x"}, "/x/cofitune_fast"),
    ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/cofitune_fast"),
    ({"HOME": "/h"}, "/h/.cache/cofitune_fast"),
    ({}, None),
])
def test_the_cache_folder(monkeypatch, environment, folder):
    for name in ("COFITUNE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
        if name in environment:
            monkeypatch.setenv(name, environment[name])
    if folder is None:  # a user without a home, as in a container
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
        assert files.cache_folder().parent == Path(files.tempfile.gettempdir())
    else:
        assert files.cache_folder() == Path(folder)
