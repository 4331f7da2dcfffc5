"""Whether the hub can be reached, and the reasons of its client for an error, in words for one sentence."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import first_line

# Of httpx, or of the package that newer releases of huggingface_hub use in its place.
_OF_THE_NETWORK = {"ConnectError", "ConnectTimeout", "ReadTimeout", "WriteTimeout", "PoolTimeout", "ReadError",
                   "WriteError", "RemoteProtocolError", "ProxyError"}

LOG_IN = "log in by `hf auth login`, or set HF_TOKEN"
_BY_STATUS = {
    401: f"the hub does not know the token: {LOG_IN}",
    403: "the token may not do this: make one with the right to write in the hub's settings, or name a repository of "
         "your own",
    404: f"the hub has no such repository, or it is private: check the name, and {LOG_IN}",
}


def reachable() -> bool:
    """Whether the hub's host takes connections; it is asked once in a process.

    The hub's own client tries for minutes, at each file anew. Behind a proxy nothing is known, and the answer is yes.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    if address.scheme in getproxies() or "all" in getproxies():
        return True
    return _connects(address.hostname or "", address.port or (80 if address.scheme == "http" else 443))


@cache
def _connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def not_here(repository: str) -> str:
    """Say that the hub is not asked, that its cache lacks a repository, and the way out."""
    return (f"{_unreached()}, and its cache on this machine lacks it: fetch it where there is a network, by "
            f"`hf download {repository}`, or name a folder")


def why_not(error: BaseException, repository: str, *, fetching: bool = True) -> str | None:
    """Say why the hub did not do what was asked, and the way out; None if another error is behind `error`.

    repository: its id, such as "user/name". fetching: something was to be read, which the cache may hold.
    """
    for one in _chain(error):
        if isinstance(one, GatedRepoError):
            return f"its owner asks for a consent: give it on the page {constants.ENDPOINT}/{repository}, and {LOG_IN}"
        if isinstance(one, RevisionNotFoundError):
            return "the repository has no such revision: name a branch, a tag or a commit of it"
        if isinstance(one, RepositoryNotFoundError):
            return _BY_STATUS[404]
        if isinstance(one, LocalTokenNotFoundError):
            return f"no token of the hub is known here: {LOG_IN}"
        if isinstance(one, EntryNotFoundError) and not isinstance(one, LocalEntryNotFoundError):
            return "the repository lacks a file that is needed"
        if isinstance(one, HfHubHTTPError):
            status = getattr(one.response, "status_code", None)
            return _BY_STATUS.get(status, f"the hub answers: {one.server_message or first_line(one)}")
    if not any(isinstance(one, (ConnectionError, TimeoutError, LocalEntryNotFoundError))
               or type(one).__name__ in _OF_THE_NETWORK for one in _chain(error)):
        return None
    return not_here(repository) if fetching else f"{_unreached()}: give the command anew where there is a network"


def _unreached() -> str:
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so that the hub is not asked"
    return "the hub cannot be reached"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
