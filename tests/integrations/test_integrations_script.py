"""examples/trainer.py, the script of a Trainer of one's own, on a tiny model."""

from __future__ import annotations

import runpy
from pathlib import Path

from tiny import make_tiny_model, make_tiny_tokenizer, write_jsonl

import cofitune_fast as cf
from cofitune_fast.anchor import AnchorSettings
from cofitune_fast.regions import read_delta

SCRIPT = Path(__file__).parents[2] / "examples" / "trainer.py"


def test_the_script_trains_logs_and_writes_a_delta(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COFITUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cf, "AnchorSettings", lambda: AnchorSettings(texts=6, tokens=6))
    model = make_tiny_model()
    model.save_pretrained(tmp_path / "model")
    make_tiny_tokenizer().save_pretrained(tmp_path / "model")
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"say {letter}", "response": letter} for letter in "abcdef"])
    main = runpy.run_path(str(SCRIPT))["main"]
    trainer = main(str(tmp_path / "model"), str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), use_cpu=True,
                   max_steps=3, save_steps=3, logging_steps=1, disable_tqdm=True)
    assert all("anchor_kl" in one for one in trainer.state.log_history if "loss" in one)
    assert read_delta(tmp_path / "out" / "delta").parameters == read_delta(tmp_path / "out" / "checkpoint-3").parameters
    assert "frozen tensors" in capsys.readouterr().out
