"""Atomic files, which are complete or absent: write under a temporary name, sync to disk, then rename."""

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

    When the block has ended, the file is on disk under its name and survives a power cut.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = _beside(path)
    temporary.touch(exist_ok=False)
    ordinary = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(stat.S_IMODE(ordinary))  # safetensors makes its files private; give them ordinary permissions
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; replace `path` by it if the block succeeds, else remove it.

    A folder at `path` is moved aside first and deleted last. So after a kill or a power cut at any moment either the
    old or the new content exists completely.
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
    """Create the folder `path` and missing parents, synced to disk so that they survive a power cut."""
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
    """Parse a JSON file; `what` names the artefact in errors, e.g. "delta".

    Raises:
        CofituneError: the file is absent or no JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CofituneError(f"No {what} at {path}: the file does not exist.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CofituneError(f"The {what} {path} cannot be read as JSON ({error}); make it anew.") from None


def writable_folder(path: str | Path) -> Path:
    """Create the folder `path` if needed, and prove that files can be written there.

    Raises:
        CofituneError: they cannot.
    """
    path = Path(path)
    try:
        make_folder(path)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise CofituneError(f"Cannot write to the folder {path} ({error.strerror}); choose another one.") from None
    return path


def _beside(path: Path) -> Path:
    """Return an unused hidden name in the same folder, with the same suffix."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{path.suffix}")


def sync(path: Path) -> None:
    """Wait until a file's content or a folder's list of names is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)
