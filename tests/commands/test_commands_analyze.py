"""`cofitune analyze` as a user types it."""

import json

import pytest
from tiny import make_tiny_model, write_jsonl

from cofitune_fast.regions import save_delta

pytest.importorskip("matplotlib")


@pytest.fixture
def rows(tmp_path):
    return write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"say {a}", "completion": a.upper() * 3} for a in "abcde"])


@pytest.fixture
def delta(tmp_path, tiny_model_folder):
    """A delta of the tiny base in which nothing moved."""
    from cofitune_fast.models import load_model
    from cofitune_fast.regions import BaseInfo

    model = load_model(tiny_model_folder).model
    return save_delta(model, "ffn@1-2", tmp_path / "runs" / "still" / "delta", base=BaseInfo.of(model))


def test_analyze_writes_figures_page_and_pictures(command_line, tmp_path, tiny_model_folder, rows, delta):
    out = tmp_path / "out"
    common = ("--model", tiny_model_folder, "--data.test", rows, "--output", out)
    deltas = ("--delta", delta, "--delta", tiny_model_folder)
    status, printed, told = command_line("analyze", *common, *deltas, "--limit", 4)
    assert status == 0 and "Reading still" in told
    assert "still: its weights are those of the base." in printed and "analysis.html" in printed
    content = json.loads((out / "analysis.json").read_text())
    assert [model["name"] for model in content["models"]] == ["base", "still", "tiny-base"]
    assert content["data"]["rows"] == 4 and content["base"]["model"] == str(tiny_model_folder)
    assert content["models"][0]["lens"] == content["models"][1]["lens"] == content["models"][2]["lens"]
    assert len(list(out.glob("*.png"))) == 3
    (out / "analysis.html").unlink()
    status, printed, _ = command_line("report", out, "--json")
    assert status == 0 and json.loads(printed)["html"] == str(out / "analysis.html")
    assert (out / "analysis.html").is_file()


@pytest.mark.parametrize(("arguments", "sentence"), [
    ((), "nothing to compare with the base; give --delta"),
    (("--delta", "nowhere"), "nowhere is not a delta"),
    (("--delta", "DELTA", "--data.test", "nowhere.jsonl"), "nowhere.jsonl does not exist"),
    (("--delta", "DELTA", "--model.quantize", "nf4"), "leave model.quantize out"),
    (("--delta", "DELTA", "--limit", "1"), "Invalid value for '--limit'"),
    (("--delta", "DELTA", "--model", "FOREIGN"), "belongs to the base"),
])  # fmt: skip
def test_bad_input_is_one_sentence(command_line, tmp_path, tiny_model_folder, tiny_tokenizer, rows, delta, arguments,
                                   sentence):
    foreign = tmp_path / "foreign"
    make_tiny_model(seed=4).save_pretrained(foreign)
    tiny_tokenizer.save_pretrained(foreign)
    places = {"DELTA": delta, "FOREIGN": foreign}
    given = ("--model", tiny_model_folder, "--data.test", rows, "--output", tmp_path / "out")
    status, _, error = command_line("analyze", *given, *(places.get(part, part) for part in arguments))
    assert status == 2 and sentence in error
    assert not (tmp_path / "out" / "analysis.json").exists()


def test_analyze_needs_rows_and_an_output(command_line, tmp_path, tiny_model_folder, rows, delta):
    given = ("--model", tiny_model_folder, "--delta", delta)
    status, _, error = command_line("analyze", *given, "--data.test", rows)
    assert status == 2 and "needs output" in error
    status, _, error = command_line("analyze", *given, "--output", tmp_path / "o")
    assert status == 2 and "There are no rows to read" in error
