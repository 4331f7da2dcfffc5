"""Upload a delta or a merged model to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..display import shown_progress
from ..regions import push_to_hub
from .app import AsJson, command, console, emit, tell


@command
def push(
    folder: Annotated[Path, typer.Argument(help="A delta, or a model that `cofitune merge` wrote.")],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the hub; made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    base_model: Annotated[str | None, typer.Option(help="The base's hub id, where the delta names a folder.")] = None,
    license: Annotated[str | None, typer.Option(help="Such as apache-2.0; by default the base's.")] = None,
    language: Annotated[str | None, typer.Option(help="For the card, such as en, or en,de.")] = None,
    datasets: Annotated[str | None, typer.Option(help="For the card: hub ids with commas between.")] = None,
    revision: Annotated[str | None, typer.Option(help="A branch; made if it does not exist.")] = None,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a delta or a merged model, with its model card and none of a run's other files, to the hub.

    The token is the one that `hf auth login` stored, or HF_TOKEN.
    """
    with shown_progress(console):
        commit = push_to_hub(
            folder.expanduser(), repository, private=private or None, base_model=base_model, license=license,
            language=_several(language), datasets=_several(datasets), revision=revision, commit_message=message)
    emit({"url": str(commit.repo_url), "commit": commit.oid}, as_json, lambda: tell(commit.repo_url))


def _several(text: str | None) -> str | list[str] | None:
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    return names if len(names) > 1 else names[0] if names else None
