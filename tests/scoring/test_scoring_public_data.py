"""Real public data, where a checkout lies beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cofitune_fast.data import read_examples
from cofitune_fast.scoring import read_suite, score_suite

DATA = Path(__file__).parents[2].parent / "shared" / "data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the folder ../shared/data with public data is absent")


def test_the_suite_is_read_and_scored(tiny_model, tiny_tokenizer):
    suite = read_suite(DATA / "versatility", speciality=DATA / "speciality" / "e2e" / "test.jsonl", limit=2)
    kinds = {task.name: (group, task.kind) for group, tasks in suite.groups().items() for task in tasks}
    assert kinds == {
        "e2e-test": ("speciality", "response"),
        "arc_easy": ("knowledge", "choice"),
        "openbookqa": ("knowledge", "choice"),
        "lambada": ("reasoning", "continuation"),
        "piqa": ("reasoning", "choice"),
        "alpaca": ("instruction", "response"),
    }
    assert "ifeval.jsonl" in suite.notes[0]
    tiny_model.config.max_position_embeddings = 4096
    scores = score_suite(tiny_model, tiny_tokenizer, suite)
    assert 0 < scores.spec < 1
    assert 0 < scores.vers < 1


@pytest.mark.parametrize(
    ("name", "rows"),
    [("e2e/train", 4122), ("e2e/valid", 68), ("e2e/test", 630), ("gsm8k/valid", 300), ("gsm8k/test", 1319)],
)
def test_specialities_are_read_whole(name, rows):
    examples = read_examples(DATA / "speciality" / f"{name}.jsonl")
    assert len(examples) == rows
    assert examples[-1].where.endswith(f":{rows}")
    assert bool(examples[0].references) == (name in ("e2e/valid", "e2e/test"))
