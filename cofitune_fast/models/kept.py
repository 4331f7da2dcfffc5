"""Converted models: ordinary folders in the cache, made once from what is no ordinary folder."""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..files import WriteFailed, atomic_folder, cache_folder
from ..leftovers import sweep, unused_name

_SESSION: dict[Path, Path] = {}  # conversions that could not be kept: the cache's folder -> the temporary one


def kept_folder(kind: str, name: str, need: Callable[[], int], write: Callable[[Path], None]) -> Path:
    """Return the cache's folder `kind`/`name` with a converted model, which `write` makes unless it is there.

    Where the cache cannot be written, the folder is temporary, and a warning says so.
    need: returns the bytes that will be written.
    """
    folder = cache_folder() / kind / name
    if (folder / "config.json").is_file():
        return folder
    if folder in _SESSION:
        return _SESSION[folder]
    try:
        with atomic_folder(folder, need()) as temporary:
            write(temporary)
    except WriteFailed as error:
        logging.getLogger("cofitune_fast").warning(f"The converted model is not kept for later runs: {error}")
        sweep(tempfile.gettempdir())
        temporary = unused_name(Path(tempfile.gettempdir(), f"cofitune-{kind}"))
        temporary.mkdir(mode=0o700)
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        try:
            write(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _SESSION[folder] = temporary
        return temporary
    return folder
