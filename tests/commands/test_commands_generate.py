"""`cofitune evaluate --generate` and `--harness`, and generated scores as a run's own."""

import json
from importlib.util import find_spec

import pytest
from tiny import write_jsonl

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("lm_eval", "langdetect", "nltk", "sacrebleu", "rouge_score")),
    reason="the extra eval is not installed")


@pytest.fixture
def evaluate(command_line, tiny_run, tmp_path):
    write_jsonl(tmp_path / "test" / "instruction" / "orders.jsonl", [
        {"prompt": f"say {n}", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]} for n in range(3)])

    def run(*extra, **settings):
        settings = {**tiny_run, **{key.replace("__", "."): value for key, value in settings.items()}}
        settings = [part for key, value in settings.items() for part in (f"--{key}", value)]
        return command_line("evaluate", "--max-new-tokens", 4, *extra, *settings)

    return run


def test_the_model_writes_too(evaluate, tmp_path):
    status, out, err = evaluate("--generate", "--json", "--harness", tmp_path / "test" / "knowledge" /
                                "knowledge-test.jsonl")
    assert status == 0, err
    content = json.loads(out)
    assert set(content["generation"]) == {f"{tmp_path.name}-test", "orders"}
    assert set(content["generation"]["orders"]["metrics"]) == {
        f"{name}_acc{error}" for name in ("prompt_level_strict", "inst_level_strict", "prompt_level_loose",
                                          "inst_level_loose") for error in ("", "_se")}
    assert set(content["tasks"]["instruction"]) == {"do-test"}
    assert content["harness"]["knowledge-test"]["n"] == 4
    assert "uni" in content
    status, out, err = evaluate("--generate", "--limit", 3, versatility__test="")
    assert status == 0, err
    assert "rouge_l" in out and "generation" in out


@pytest.mark.slow
def test_a_run_may_count_generated_scores(evaluate):
    status, out, err = evaluate("--json", versatility__generate="true", data__metric="chrf")
    assert status == 0, err
    tasks = json.loads(out)["tasks"]
    assert tasks["instruction"]["orders"]["metric"] == "prompt_level_strict_acc"
    assert tasks["speciality"]["speciality-test"]["metric"] == "chrf"
    assert 0 <= json.loads(out)["spec"] < 1
