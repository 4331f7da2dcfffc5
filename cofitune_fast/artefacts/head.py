"""Types shared by all artefacts: the description of the run."""

from __future__ import annotations

from typing import Any, Required

from .fields import Entry, Number, Table, Text, Words


class Base(Entry, total=False):
    """The model before fine-tuning; `fingerprint` is the SHA-256 over its parameters."""

    model: Required[Text]
    fingerprint: Words
    dtype: Words
    parameters: Number


class Head(Entry, total=False):
    """Head of an artefact.

    Attributes:
        created: date and time, ISO 8601.
        command: the command line.
        environment: machine and versions, as `cofitune env` shows them.
    """

    created: Words
    command: Words
    base: Required[Base]
    environment: Table[Any]
