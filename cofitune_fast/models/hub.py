"""The hub: whether it can be reached, and the reasons of its client for an error, in words for one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

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
from huggingface_hub.utils import get_session

from ..errors import first_line
from ..progress import progress

# Of httpx, or of the package that newer releases of huggingface_hub use in its place.
_OF_THE_NETWORK = {"ConnectError", "ConnectTimeout", "ReadTimeout", "WriteTimeout", "PoolTimeout", "ReadError",
                   "WriteError", "RemoteProtocolError", "ProxyError"}

_PATIENCE = 5.0  # seconds for one attempt
_BELIEVED = 60.0  # seconds for which an answer holds
_answers: dict[str, tuple[float, bool]] = {}  # endpoint -> when it was tried, and whether there was an answer

LOG_IN = "log in by `hf auth login`, or set HF_TOKEN"
_BY_STATUS = {
    401: f"the hub does not know the token: {LOG_IN}",
    403: "the token may not do this: make one with the right to write in the hub's settings, or name a repository of "
         "your own",
    404: f"the hub has no such repository, or it is private: check the name, and {LOG_IN}",
}


def within_reach() -> bool:
    """Try the hub once and for a few seconds, and remember the answer for a minute.

    The hub's client itself tries an endpoint that does not answer five times over 23 s, and each file anew. Where this
    is false, pass `local_files_only=True` to it. False without an attempt if HF_HUB_OFFLINE is set.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    endpoint = constants.ENDPOINT
    tried, answered = _answers.get(endpoint, (0.0, False))
    if endpoint not in _answers or monotonic() - tried > _BELIEVED:
        with progress(f"Asking {endpoint}"):
            try:
                get_session().head(endpoint, timeout=_PATIENCE)
                answered = True
            except Exception as error:  # of the HTTP client, which depends on the release of the hub's
                answered = not _is_of_network(error)
        _answers[endpoint] = (monotonic(), answered)
    return answered


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
    if not _is_of_network(error):
        return None
    why = "HF_HUB_OFFLINE is set, so that the hub is not asked" if constants.HF_HUB_OFFLINE else (
        "the hub cannot be reached")
    if not fetching:
        return f"{why}: give the command anew where there is a network"
    return (f"{why}, and its cache on this machine lacks it: fetch it where there is a network, by `hf download "
            f"{repository}`, or name a folder")


def _is_of_network(error: BaseException) -> bool:
    return any(isinstance(one, (ConnectionError, TimeoutError, LocalEntryNotFoundError))
               or type(one).__name__ in _OF_THE_NETWORK for one in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
