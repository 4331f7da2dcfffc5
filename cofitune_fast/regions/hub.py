"""Sharing on the hub: a delta or a merged model with its card, as one commit."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard, constants, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from yaml import YAMLError

from .. import __version__
from ..errors import CofituneError, first_line
from ..files import atomic_path
from ..models.folder import CONFIG, check_weights, files_to_share, weight_files
from ..models.hub import LOG_IN, why_not
from ..models.tensor_file import with_metadata
from ..progress import progress
from .card import TAG, card_of, hub_id, model_card, shown_name, terms, without_folders
from .delta import CARD, INFO, TENSORS, DeltaInfo, check_tensors, opened, read_cells, read_delta


def push_to_hub(
    path: str | Path,
    repo_id: str,
    *,
    base_model: str | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
    datasets: str | list[str] | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Upload a delta, or a model that `merge` wrote, to the Hugging Face hub, with its model card.

    The repository is made if it does not exist. Only the delta's or the model's own files are uploaded, in one commit:
    no checkpoints, no optimizer states. In what is uploaded, absolute paths of this machine are only their last parts,
    and a card that nobody edited shows how the delta is loaded from the hub.

    Args:
        path: the folder of the delta, or of the merged model.
        repo_id: "OWNER/NAME", or "NAME" for one of your own.
        base_model: the base's hub id, where the delta names a folder.
        license: such as "apache-2.0"; by default that of the base, by its card.
        language, datasets: for the card's header, such as "en" and "OWNER/NAME".
        private: make the repository private. One that exists stays as it is, and a public one is then refused.
        token: of the hub; by default the one that `hf auth login` stored, or HF_TOKEN.
        revision: a branch, made if it does not exist.

    Returns:
        huggingface_hub's `CommitInfo`; its `repo_url` and `oid` name the repository and the commit.

    Raises:
        CofituneError: `path` is neither a delta nor a merged model, or damaged, or the hub refuses; the sentence says
            what to do.
    """
    folder = Path(path)
    is_delta = _is_delta(folder)
    info = read_delta(folder) if is_delta else None
    if info is not None:
        _check_whole(folder, info)
    if constants.HF_HUB_OFFLINE:
        raise CofituneError(f"{folder} cannot be pushed to {repo_id}: HF_HUB_OFFLINE is set; unset it where there is a "
                            "network.")
    if (token or get_token()) is None:
        raise CofituneError(f"{folder} cannot be pushed to {repo_id}: no token of the hub is known here; {LOG_IN}.")
    api = HfApi(token=token, library_name="cofitune-fast", library_version=__version__)
    with _asking(f"{folder} cannot be pushed to {repo_id}", repo_id), progress(f"Pushing {folder} to {repo_id}"), \
            tempfile.TemporaryDirectory(prefix="cofitune-push-") as scratch:
        header, text = _card_of(folder)
        recorded = header.get("base_model") or (hub_id(info.base.model) if info is not None else None)
        base, of_base = _base_on_hub(api, base_model, recorded)
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.model_info(repository).private:
            raise CofituneError(f"The repository {repository} exists and is public, and private was asked for; make it "
                                "private in its settings on the hub, or name another one.")
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        header = _completed(header, of_base, base, "finetune" if info is None else "adapter", license=license,
                            language=language, datasets=datasets)
        if info is not None:
            place = repository + (f"@{revision}" if revision else "")
            files = _files_of_delta(folder, info, base, header, text, place, Path(scratch))
        else:
            files = {**_files_of_merged(folder), CARD: card_of(header, text).encode()}
        if "license" not in header:
            logging.getLogger("cofitune_fast").warning(
                f"The card of {repository} names no licence, as that of the base is not known; give license (on the "
                "command line: --license).")
        message = commit_message or (f"Upload the delta {info.region}" if info else "Upload the merged model")
        return api.create_commit(repository, [CommitOperationAdd(name, content) for name, content in files.items()],
                                 commit_message=message, revision=revision)


def _is_delta(folder: Path) -> bool:
    """True for a delta, false for a merged model.

    Raises:
        CofituneError: the folder is neither, or the checkpoint of a training.
    """
    if (folder / "checkpoint.json").is_file():
        raise CofituneError(f"{folder} is a checkpoint of a training, not its result; push the delta that the finished "
                            "run writes, or write one by save_delta.")
    if (folder / TENSORS).is_file():
        return True
    if (folder / CONFIG).is_file() and TAG in (_card_of(folder)[0].get("tags") or []):
        check_weights(folder)
        return False
    if (folder / CONFIG).is_file():
        raise CofituneError(f"{folder} is a model that cofitune merge did not write; `hf upload` uploads any folder.")
    with opened(folder):  # says what is missing, and whether it is one level deeper
        raise AssertionError


def _check_whole(folder: Path, info: DeltaInfo) -> None:
    """Refuse a delta whose tensors changed since it was saved."""
    with opened(folder) as file:
        check_tensors(file, info, {name: file.get_tensor(name) for name in info.parameters}, folder)


def _card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """Header and text of a folder's card; both empty if it has none that can be read."""
    try:
        card = ModelCard((folder / CARD).read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except (OSError, ValueError, YAMLError):
        return {}, ""
    return card.data.to_dict(), card.text


def _base_on_hub(api: HfApi, named: str | None, recorded: Any) -> tuple[Any, dict[str, Any]]:
    """The base's hub id and the terms of its card; None and no terms if the hub has no such base.

    named: what the user calls it. recorded: what the card or the delta says; of several bases nothing is asked.

    Raises:
        CofituneError: the hub lacks the base that the user named.
    """
    name = named or recorded
    if not isinstance(name, str):
        return name, {}
    try:
        found = api.model_info(name)
    except (RepositoryNotFoundError, HFValidationError):
        if named is not None:
            raise CofituneError(f"The hub has no model {named} that you may see; name the base by its id OWNER/NAME."
                                ) from None
        return None, {}
    return found.id, terms(found.card_data.to_dict() if found.card_data else {}, found.id)


def _completed(
    header: Mapping[str, Any], of_base: Mapping[str, Any], base: Any, relation: str, **given: Any
) -> dict[str, Any]:
    """A card's header with what was `given`, and with the terms of the base where it says nothing."""
    header = {key: value for key, value in header.items() if key not in ("base_model", "base_model_relation")}
    given = {key: value for key, value in given.items() if value is not None}
    if "license" in given or "license" in header:
        of_base = {key: value for key, value in of_base.items() if not key.startswith("license")}
    if given.get("license", header.get("license")) != header.get("license"):
        header = {key: value for key, value in header.items() if not key.startswith("license")}
    return {**of_base, **header, **given, **({} if base is None else {"base_model": base,
                                                                      "base_model_relation": relation})}


def _files_of_delta(
    folder: Path, info: DeltaInfo, base: str | None, header: Mapping[str, Any], text: str, place: str, scratch: Path
) -> dict[str, Any]:
    """The files to upload by name: a path, or bytes where they are not those of the folder.

    A card that somebody edited keeps its text; any other is written anew for its place on the hub.
    """
    was, cells = asdict(info), read_cells(folder)
    if not info.parts:
        del was["parts"]
    name = base if isinstance(base, str) else shown_name(info.base.model)
    now = {**was, "settings": without_folders(info.settings), "scores": without_folders(info.scores),
           "base": {**was["base"], "model": name}}
    tensors = folder / TENSORS
    if now != was:
        with atomic_path(scratch / TENSORS, tensors.stat().st_size) as copy:
            with_metadata(tensors, copy, {"format": "pt", "cofitune": json.dumps(now, ensure_ascii=False)})
        tensors = scratch / TENSORS
    if text in ("", ModelCard(model_card(was, cells)).text):
        text = ModelCard(model_card(now, cells, place=place, base_on_hub=base)).text
    content = now if cells is None else {**now, "cells": asdict(cells)}
    return {TENSORS: tensors, INFO: (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode(),
            CARD: card_of({"library_name": "cofitune-fast", "tags": [TAG], **header}, text).encode()}


def _files_of_merged(folder: Path) -> dict[str, Any]:
    weights = weight_files(folder)
    lists = [folder / f"{name}.index.json" for name in ("model.safetensors", "pytorch_model.bin")]
    shared, private = files_to_share(folder)
    if private:
        logging.getLogger("cofitune_fast").warning(
            f"Not uploaded, as no model needs a file of that name: {', '.join(file.name for file in private)}; if it "
            "belongs to the model, upload it by `hf upload`.")
    files = [*weights, *shared, *(file for file in lists if file.is_file())]
    return {str(file.relative_to(folder)): file for file in files}


@contextmanager
def _asking(what: str, repository: str) -> Iterator[None]:
    """Turn what the hub's client raises into one sentence that begins with `what`."""
    try:
        yield
    except CofituneError:
        raise
    except HFValidationError as error:
        raise CofituneError(f"{what}: {first_line(error)}; name the repository OWNER/NAME.") from None
    except Exception as error:  # of the hub's client, of its HTTP client, or of the disk
        if isinstance(error, ValueError) and str(error).startswith("Invalid metadata"):
            reason = f"the hub refuses the card's header ({' '.join(str(error).split()[4:])})"
        else:
            reason = why_not(error, repository, fetching=False) or first_line(error)
        raise CofituneError(f"{what}: {reason}.") from None
