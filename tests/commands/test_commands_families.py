"""The page of families says what is seen: some of its rows, made again."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import FAMILIES
from family_page import END, START, Trial

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
ROWS = {line.split(" | ")[0].removeprefix("| "): line.removesuffix(" |").split(" | ")[1:]
        for line in PAGE.read_text(encoding="utf-8").split(START)[1].split(END)[0].splitlines()[2:]}


@pytest.mark.parametrize("family", sorted({"gpt2", "gpt_oss", "qwen3_5_text"} & set(FAMILIES)))
def test_rows_of_the_page(family, tmp_path):
    trial = Trial(family, tmp_path)
    assert trial.row() == ROWS[family], trial.notes


def test_the_page_has_every_family_and_no_fault():
    assert set(FAMILIES) <= set(ROWS) and len(ROWS) > 100
    assert not [family for family, cells in ROWS.items() if "fault" in cells]
