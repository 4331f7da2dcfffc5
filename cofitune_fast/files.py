"""Files that are either complete or absent: write under a temporary name, wait for the disk, then rename."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import CofituneError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, else remove it.

    When the block is left, the file is on the disk under its name and survives a power cut.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = _beside(path)
    temporary.touch(exist_ok=False)
    ordinary = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(stat.S_IMODE(ordinary))  # safetensors makes its files private; an artefact is an ordinary file
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; put it in `path`'s place if the block succeeds, else remove it.

    A folder that stands there already is moved aside first and deleted last, so that a process killed or a power cut at
    any moment leaves the old content or the new one somewhere whole.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary, old = _beside(path), _beside(path)
    temporary.mkdir()
    ordinary = temporary.stat().st_mode
    try:
        yield temporary
        for inside in (temporary, *temporary.rglob("*")):
            inside.chmod(stat.S_IMODE(ordinary) & (0o7777 if inside.is_dir() else 0o666))
            sync(inside)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        sync(path.parent)
        if old.exists():
            shutil.rmtree(old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(path: str | Path) -> Path:
    """Create the folder `path` and those above it where they are missing, so that they survive a power cut."""
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)
    return path


def write_text(path: str | Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path, what: str) -> Any:
    """Parse a JSON file; `what` names the artefact in the error, e.g. "delta"."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CofituneError(f"No {what} at {path}: the file does not exist.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CofituneError(f"The {what} {path} cannot be read as JSON ({error}); make it anew.") from None


def writable_folder(path: str | Path) -> Path:
    """Create `path` if need be and prove by a write that files can be put there."""
    path = Path(path)
    try:
        make_folder(path)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise CofituneError(f"Cannot write to the folder {path} ({error.strerror}); choose another one.") from None
    return path


def _beside(path: Path) -> Path:
    """A hidden name that nobody else uses, in the same folder and with the same suffix."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{path.suffix}")


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)
