"""The page, pictures and sentences of an analysis, from made-up figures."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser

import pytest

from cofitune_fast.errors import CofituneError
from cofitune_fast.report import write_analysis_page
from cofitune_fast.report.analysis.schema import ROLES, read_analysis
from cofitune_fast.report.analysis.sentences import median_layer, rows, sentences

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


def model(name, nll, gained=0, change=None):
    return {
        "name": name, "path": f"runs/{name}", "region": "ffn.down@2" if change else None, "change": change,
        "lens": {"nll": [9.0, 5.0, 4.0, nll], "nll_se": [0.1] * 4, "top1": [0.0, 0.1, 0.2, 0.5], 
                 "median_rank": [9, 5, 2, 1], "kl": [5.0, 3.0, 1.0, 0.0]},
        "readable": {"all": {"counts": [0, 1, 1, 3], "never": 5},
                     "gained": {"counts": [0, 0, gained, 0], "never": 0}},
        "direct": {"embedding": 0.1, "attention": [0.1, 0.2, nll / 10], "ffn": [0.0, -0.1, 0.4], "rounding": 0.0,
                   "total": 0.7 + nll / 10},
    }  # fmt: skip


def analysis():
    def table(value):
        return {role: [0.0, 0.0, value if role == "ffn.down" else 0.0] for role in ROLES}

    change = {"relative": table(0.02), "share": table(0.75), "total": 0.004, "rest": {"relative": 0.1, "share": 0.25}}
    return {
        "title": "A <b>title</b>", "created": "2026-01-02T03:04:05+00:00", "command": "cofitune analyze",
        "base": {"model": "some/base", "fingerprint": "f" * 64, "dtype": "bfloat16", "parameters": 1000},
        "layers": 3, "roles": list(ROLES), "data": {"file": "rows.jsonl", "task": "rows", "rows": 4, "tokens": 10},
        "models": [model("base", 3.0), model("run", 2.0, 2, change)], "environment": {"torch": "2"},
    }  # fmt: skip


def written(tmp_path, content):
    path = tmp_path / "analysis.json"
    path.write_text(json.dumps(content))
    return path


def test_the_page_and_its_pictures_are_written(tmp_path):
    paths = write_analysis_page(written(tmp_path, analysis()), tmp_path)
    assert [path.name for path in paths["png"]] == ["analysis_change.png", "analysis_lens.png", "analysis_modules.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths["png"])
    page = paths["html"].read_text()
    parser = HTMLParser()
    parser.feed(page)
    assert page.count("<svg") == 3 and "A &lt;b&gt;title" in page and "<script" not in page
    for word in (*paths["sentences"], "ffn.down@2", "10 response tokens of 4 rows", "runs/run", "teacher forcing"):
        assert word.replace("'", "&#39;") in page
    assert write_analysis_page(tmp_path, tmp_path)["json"] == tmp_path / "analysis.json"


def test_the_sentences_say_what_the_figures_say():
    moved, entered = (text.replace("\u00a0", " ") for text in sentences(analysis()))
    assert moved == ("run moved the weights by 0.4 % of their norm, 75 % of the squared change in the FFNs, 0 % in "
                     "attention, 25 % in embedding, head and norms; the cell that moved furthest for its size is "
                     "ffn.down of layer 2 (2.0 %).")
    assert entered == (
        "run: the NLL per token goes from 3.000 ± 0.100 to 2.000 ± 0.100; the 2 tokens that only training made right "
        "become readable after layer 1 in the median, those that the base has right after layer 2; the right token's "
        "lead changes by -0.10 logits from attention and +0.00 from FFNs."
    )


def test_a_model_that_did_not_move_is_said_to_be_the_base(tmp_path):
    content = analysis()
    change = content["models"][1]["change"]
    for key in ("relative", "share"):
        change[key] = {role: [0.0] * 3 for role in ROLES}
    change["total"] = change["rest"]["share"] = 0.0
    assert sentences(content)[0] == "run: its weights are those of the base."
    assert len(write_analysis_page(written(tmp_path, content), tmp_path)["png"]) == 3


def test_a_cell_of_zeros_that_moved_has_no_relative_change(tmp_path):
    content = analysis()
    content["models"][1]["change"]["relative"]["attn.q"][0] = None
    assert "ffn.down of layer 2" in sentences(read_analysis(written(tmp_path, content)))[0]
    write_analysis_page(tmp_path, tmp_path)


def test_the_median_layer_is_that_of_the_readable_tokens():
    assert median_layer({"counts": [0, 1, 1, 3], "never": 5}) == 2
    assert median_layer({"counts": [2, 1, 0, 0], "never": 0}) == -1
    assert median_layer({"counts": [0, 0, 0, 0], "never": 4}) is None
    assert [row["gained_readable"] for row in rows(analysis())] == ["–", "after layer 1"]


@pytest.mark.parametrize(("place", "value", "sentence"), [
    (("layers",), 0, "number of layers"),
    (("roles",), ["attn.x"], "`roles` must be some of"),
    (("models",), [], "at least one fine-tuned model"),
    (("models", 1, "name"), "base", "stands there twice"),
    (("models", 1, "lens", "kl"), [1.0], r"models\[1\].lens.kl must hold 4 numbers"),
    (("models", 1, "direct", "ffn", 0), None, "direct.ffn must hold 3 numbers"),
    (("models", 1, "change"), None, r"models\[1\].change must be a JSON object"),
    (("models", 0, "readable", "all", "never"), "x", "readable.all must hold 5 numbers"),
    (("base", "model"), "", "base.model must be a text"),
])  # fmt: skip
def test_a_malformed_analysis_is_one_sentence(tmp_path, place, value, sentence):
    content = copy.deepcopy(analysis())
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(CofituneError, match=sentence):
        write_analysis_page(written(tmp_path, content), tmp_path / "out")
    assert not (tmp_path / "out").exists()
