"""Deltas by their hub id: fetched into the hub's cache, or taken from it."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from ..errors import CofituneError, first_line
from ..models.hub import why_not, within_reach
from ..progress import progress

FILES = ("delta.safetensors", "cofitune.json", "README.md")
"""The files of a delta; the first holds all that is needed to use it."""
_HUB_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^@\s]+))?")


def delta_folder(path: str | Path) -> Path:
    """Return a delta's folder: `path` itself, or that of the hub's cache after the delta was fetched from the hub.

    path: a folder, or a hub id, "OWNER/NAME" or "OWNER/NAME@REVISION". What exists here of that name goes before. Where
        the hub cannot be reached, its cache must hold the delta.

    Raises:
        CofituneError: the delta can be had neither from the hub nor from its cache.
    """
    found = _HUB_ID.fullmatch(str(path))
    if found is None or Path(path).exists():
        return Path(path)
    repository, revision = found["repository"], found["revision"]
    where = f"There is no folder {path} here, and the delta cannot be had from the hub"
    with progress(f"Fetching the delta {path}"):
        local = not within_reach()
        try:
            folder = Path(hf_hub_download(repository, FILES[0], revision=revision, local_files_only=local)).parent
        except Exception as error:  # of the hub's client, of its HTTP client, or of the disk
            if isinstance(error, RemoteEntryNotFoundError):
                reason = f"the repository lacks {FILES[0]}, so that it holds no delta"
            else:
                reason = why_not(error, repository) or first_line(error)
            raise CofituneError(f"{where}: {reason}.") from None
        for name in FILES[1:]:
            with suppress(Exception):  # for people, and not needed
                hf_hub_download(repository, name, revision=folder.name, local_files_only=local)
    return folder
