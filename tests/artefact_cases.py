"""What the tests of an artefact's writer share: whether its type names everything that was written."""

from __future__ import annotations

import json
from unittest.mock import patch

from pydantic import ValidationError

from cofitune_fast.artefacts import checked
from cofitune_fast.artefacts.fields import Entry
from cofitune_fast.artefacts.reading import _adapter


def assert_described(kind, content):
    """The content, as its file holds it, can be read, and each of its keys stands in its type."""
    content = json.loads(json.dumps(content))
    checked(kind, content)
    with patch.dict(Entry.__pydantic_config__, extra="forbid"):
        strict = _adapter.__wrapped__(kind)
    try:
        strict.validate_python(content, strict=True)
    except ValidationError as error:
        raise AssertionError([(flaw["loc"], flaw["msg"]) for flaw in error.errors()]) from None
