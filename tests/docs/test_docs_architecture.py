"""The architecture page's table of who may know whom is the one that tests/test_imports.py enforces."""

from __future__ import annotations

import re

from docs_pages import ROOT
from test_imports import MAY_IMPORT, TOP

EVERYWHERE = {"errors", "files", "json_text", "leftovers", "progress", "signals", "validation", "yaml_text",
              "environment"}
"""Said in a sentence above the table."""


def table_of(page: str) -> dict[str, set[str]]:
    """{room: rooms it may know}; what follows a semicolon, a colon or a bracket is comment."""
    section = page.split("## Who may import whom")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \| (.+) \|$", section, re.MULTILINE)
    known = "|".join([*MAY_IMPORT, *TOP])
    return {room: set(re.findall(rf"\b(?:{known})\b", re.split(r"[;:(]", cell)[0])) for rooms, cell in rows
            for room in re.findall(r"`(\w+)`", rooms)}


def test_the_table_says_what_is_enforced():
    table = table_of((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    enforced = {room: set(others.split()) - EVERYWHERE for room, others in MAY_IMPORT.items()
                if room not in EVERYWHERE | {"cli"}}
    assert {room: others - EVERYWHERE for room, others in table.items() if room not in TOP} == enforced
