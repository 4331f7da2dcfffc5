"""Atomic files, which are complete or absent: write under a temporary name, sync to disk, then rename.

What the operating system refuses (a full or read-only disk, a quota, a permission) becomes one sentence, `WriteFailed`.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import CofituneError
from .leftovers import sweep_once, unused_name

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OF_WRITING = _FULL | {errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EBUSY, errno.EXDEV, errno.ESTALE}
_SPARE = 1 << 20  # bytes for the small files beside the large ones that `require_room` counts


class WriteFailed(OSError, CofituneError):
    """A file or folder that cannot be written, in one sentence with path, need and room.

    It is an OSError with the errno and strerror of the one behind it, so that whoever can do without the file goes on.
    """

    sentence: str | None = None

    def __str__(self) -> str:
        return self.sentence or super().__str__()


@contextmanager
def atomic_path(path: str | Path, need: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, else remove it.

    When the block has ended, the file is on disk under its name and survives a power cut.
    need: bytes that will be written, for the sentence of an error.

    Raises:
        WriteFailed: the file cannot be written.
    """
    path = possible_path(path)
    make_folder(path.parent)
    sweep_once(path.parent)
    temporary = unused_name(path)
    with writing(path, need, temporary):
        temporary.touch(exist_ok=False)
        try:
            ordinary = temporary.stat().st_mode
            yield temporary
            temporary.chmod(stat.S_IMODE(ordinary))  # safetensors makes its files private; give ordinary permissions
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, need: int | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; replace `path` by it if the block succeeds, else remove it.

    A folder at `path` is moved aside first and deleted last. So after a kill or a power cut at any moment either the
    old or the new content exists completely. A link stays a link, and the folder it names is replaced. A folder that
    cannot be renamed, such as a mounted volume, is filled file by file, with config.json last.
    need: bytes that will be written, for the sentence of an error.

    Raises:
        WriteFailed: the folder cannot be written.
    """
    path = possible_path(path)
    target = path.resolve() if path.is_symlink() else path
    stays = target.is_dir() and (target.is_mount() or not os.access(target.parent, os.W_OK))
    make_folder(target if stays else target.parent)
    for folder in (target.parent, target):
        sweep_once(folder)
    temporary, old = unused_name(target / target.name if stays else target), unused_name(target, "old")
    with writing(path, need, temporary):
        temporary.mkdir()
        try:
            ordinary = temporary.stat().st_mode
            yield temporary
            for inside in (temporary, *temporary.rglob("*")):
                inside.chmod(stat.S_IMODE(ordinary) & (0o7777 if inside.is_dir() else 0o666))
                sync(inside)
            if stays:
                _fill(target, temporary)
            else:
                _replace(target, temporary, old)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _replace(path: Path, temporary: Path, old: Path) -> None:
    """Put the folder `temporary` in the place of `path`, whose folder is moved to `old` meanwhile."""
    if path.exists():
        try:
            os.replace(path, old)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EXDEV):
                raise
            return _fill(path, temporary)  # a mount that does not look like one
    try:
        os.replace(temporary, path)
    except OSError:
        if old.exists():
            os.replace(old, path)
        raise
    sync(path.parent)
    if old.exists():
        shutil.rmtree(old)
    return None


def _fill(path: Path, temporary: Path) -> None:
    """Replace the content of the folder `path` by that of `temporary`."""
    for outdated in foreign_content(path):
        if outdated != temporary:
            shutil.rmtree(outdated) if outdated.is_dir() and not outdated.is_symlink() else outdated.unlink()
    for inside in sorted(temporary.iterdir(), key=lambda file: file.name == "config.json"):
        moved = Path(shutil.move(inside, path / inside.name))
        for part in (moved, *moved.rglob("*")):
            sync(part)
    sync(path)


def foreign_content(folder: Path) -> list[Path]:
    """Return what is in a folder, without that which every new volume holds."""
    return [inside for inside in folder.iterdir() if inside.name != "lost+found"]


def possible_path(path: str | Path) -> Path:
    """Return the path, unless no file can have it.

    Raises:
        CofituneError: it holds a NUL, or a character that names of files cannot hold, such as half of a surrogate pair.
    """
    try:
        if 0 not in os.fsencode(path):
            return Path(path)
    except UnicodeEncodeError:
        pass
    raise CofituneError(f"The path {str(path)!a} holds a character that no file name can hold; choose another one.")


def make_folder(path: str | Path) -> Path:
    """Create the folder `path` and missing parents, synced to disk so that they survive a power cut.

    Raises:
        WriteFailed: it cannot be created.
    """
    path = possible_path(path)
    with writing(path, None, path, *path.parents):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            sync(folder.parent)
    return path


@contextmanager
def writing(path: Path, need: int | None = None, *ours: Path) -> Iterator[None]:
    """Context that turns an error of the system in writing `path`, or one of the paths `ours`, into a WriteFailed."""
    try:
        yield
    except CofituneError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _number_in(error)
        about = getattr(error, "filename", None)
        if about is None or isinstance(about, int):
            ours_too = number in _OF_WRITING
        else:
            ours_too = number is not None and any(
                Path(os.fsdecode(about)).is_relative_to(place) for place in (path, *ours))
        if number is None or not ours_too:  # no error of the system, or one in reading another file
            raise
        raise write_failed(path, number, need) from error


def write_failed(path: Path, number: int, need: int | None = None) -> WriteFailed:
    """Describe that `path` cannot be written. number: errno. need: bytes that were to be written, if they are known."""
    existing = _existing(path)
    free = _free(existing)
    sizes = [f"{size_text(need)} are needed" if need else "", f"{size_text(free)} are free" if free is not None else ""]
    way_out = "make room there" if number in _FULL else "make the folder writable"
    known = " and ".join(filter(None, sizes))
    failed = WriteFailed(number, os.strerror(number))
    failed.sentence = (f"{path} cannot be written ({os.strerror(number)}): " + (f"{known} in {existing}; " if known else
                       "") + f"{way_out}, or choose another one.")
    return failed


def _number_in(error: Exception) -> int | None:
    """The errno in the text of an error of safetensors or tokenizers, which are written in Rust."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found.group(1)) if found else None


def require_room(path: str | Path, need: int, what: str) -> None:
    """Refuse before the work begins if what it will write does not fit on the disk of `path`.

    need: bytes. what: what will be written, such as "the delta". A quota cannot be seen by this.

    Raises:
        CofituneError: too little room is free.
    """
    existing = _existing(Path(path))
    free = _free(existing)
    if free is not None and free < need + _SPARE:
        raise CofituneError(f"There is no room for {what} in {path}: {size_text(need + _SPARE)} are needed and "
                            f"{size_text(free)} are free in {existing}; make room there, or choose another folder.")


def free_bytes(path: str | Path) -> int | None:
    """Bytes that are free on the disk of `path`, which need not exist; None if the file system does not say."""
    return _free(_existing(Path(path)))


def _free(existing: Path) -> int | None:
    try:
        usage = shutil.disk_usage(existing)
    except OSError:
        return None
    return usage.free if usage.total else None


def _existing(path: Path) -> Path:
    """The path itself or its nearest parent that exists."""
    path = Path(os.path.realpath(path))
    return next((folder for folder in (path, *path.parents) if os.path.exists(folder)), path)


def size_text(size: int) -> str:
    """Write a number of bytes for people, such as "1.5 GB".

    >>> size_text(1_500_000_000)
    '1.5 GB'
    """
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}" if size < 1000 * unit else f"{size / unit:,.0f} {name}"
    return f"{size} bytes"


def write_text(path: str | Path, text: str) -> None:
    content = text.encode()
    with atomic_path(path, len(content)) as temporary:
        temporary.write_bytes(content)


def writable_folder(path: str | Path) -> Path:
    """Create the folder `path` if needed, and prove that files can be written there.

    Raises:
        CofituneError: they cannot.
    """
    path = possible_path(path)
    try:
        make_folder(path)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise CofituneError(f"Cannot write to the folder {path} ({error.strerror}); choose another one.") from None
    return path


def cache_folder() -> Path:
    """Folder of converted models and caches, which need not exist.

    It is COFITUNE_CACHE if that is set and not blank, else cofitune_fast in XDG_CACHE_HOME or in ~/.cache. A user
    without a home folder has it in the folder for temporary files.
    """
    if (named := os.environ.get("COFITUNE_CACHE", "")).strip():
        return Path(os.path.expanduser(named))
    if os.path.isabs(named := os.environ.get("XDG_CACHE_HOME", "")):  # by its specification any other value is ignored
        return Path(named) / "cofitune_fast"
    try:
        return Path.home() / ".cache" / "cofitune_fast"
    except RuntimeError:
        user = getattr(os, "getuid", int)()
        return Path(tempfile.gettempdir()) / f"cofitune_fast-{user}"


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
