"""docs/coming-from.md shows what `cofitune import-config` writes, to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest
from docs_pages import ROOT, blocks_of
from tiny import make_tiny_model, make_tiny_tokenizer

from cofitune_fast.commands.import_config import lines_of
from cofitune_fast.migration import as_yaml, import_config

PAGE = {block.text.split("\n")[0]: block.text for block in blocks_of(ROOT / "docs" / "coming-from.md")}


@pytest.mark.parametrize("name", ["axolotl.yml", "llama.yaml"])
def test_the_page_shows_what_is_written(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for owner in (make_tiny_model("llama", num_hidden_layers=8), make_tiny_tokenizer()):
        owner.save_pretrained("my-chat-model")
    Path(name).write_text(PAGE[f"# {name}"], encoding="utf-8")
    draft = import_config(name)
    written = next(text for first, text in PAGE.items() if first.startswith(f"# {name} of "))
    assert as_yaml(draft) == written
    if name == "axolotl.yml":
        lines = lines_of(draft)
        assert "\n".join(lines) + "\n" == PAGE[lines[0]]
