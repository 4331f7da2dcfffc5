"""lm-eval on the live model: its log-likelihoods are ours, local files are its tasks, and nothing is changed."""

from __future__ import annotations

import math
import sys
from importlib.util import find_spec

import pytest
import torch
from thinking_templates import SWITCH
from tiny import write_jsonl

from cofitune_fast.errors import CofituneError
from cofitune_fast.scoring import answer_scores, generation_score, harness, harness_scores, read_task
from cofitune_fast.scoring.score import task_rows
from cofitune_fast.scoring.tasks import METRICS

needs_lm_eval = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("lm_eval", "langdetect", "nltk", "immutabledict")),
    reason="the extra eval is not installed")


@pytest.fixture
def files(tmp_path):
    words = ["red", " blue and green ", "none", "all of it"]
    return {
        "mychoices": write_jsonl(tmp_path / "mychoices.jsonl", [
            {"query": f"which {n}?" + " " * (n % 2), "choices": words[: 2 + n % 3], "gold": n % 2} for n in range(5)]),
        "mywords": write_jsonl(tmp_path / "mywords.jsonl", [
            {"context": f"so {n} is the", "continuation": words[n % 4]} for n in range(5)]),
        "myorders": write_jsonl(tmp_path / "myorders.jsonl", [
            {"prompt": f"say {n}", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]} for n in range(3)]),
    }


@needs_lm_eval
def test_log_likelihoods_are_ours(files, tiny_model, tiny_tokenizer):
    found = harness_scores(tiny_model, tiny_tokenizer, [files["mychoices"], files["mywords"]], items=True, limit=4)
    for name in ("mychoices", "mywords"):
        task = read_task(files[name], limit=4)
        ours = [-answer.nll for answer in answer_scores(tiny_model, task_rows(task, tiny_tokenizer, None), 0)]
        theirs = [float(response[0]) for item in found[name]["items"] for response in item["responses"]]
        assert theirs == pytest.approx(ours, rel=1e-4)
        assert found[name]["n"] == 4
        if name == "mywords":
            assert found[name]["perplexity"] == pytest.approx(math.exp(-sum(ours) / 4), rel=1e-4)
            continue
        by_sum = by_character = 0
        for item in task.items:
            given = [ours.pop(0) for _ in item.choices]
            per_character = [value / len(choice.strip()) for value, choice in zip(given, item.choices, strict=True)]
            by_sum += given.index(max(given)) == item.gold
            by_character += per_character.index(max(per_character)) == item.gold
        assert found[name]["acc"] == by_sum / 4
        assert found[name]["acc_norm"] == by_character / 4
        assert "acc_stderr" in found[name]


@needs_lm_eval
def test_instructions_and_a_task_that_is_read_already(files, tiny_model, tiny_tokenizer):
    task = read_task(files["myorders"], generate=True)
    found = harness_scores(tiny_model, tiny_tokenizer, [task], chat=True, max_new_tokens=4)
    ours = generation_score(tiny_model, tiny_tokenizer, task, max_new_tokens=4)
    assert {name: found["myorders"][name] for name in METRICS["instruction"]} == {
        name: ours.metrics[name] for name in METRICS["instruction"]}
    assert found["myorders"]["prompt_level_strict_acc"] == found["myorders"]["inst_level_strict_acc"]
    assert found["myorders"]["n"] == 3


@needs_lm_eval
def test_in_a_chat_choices_stand_where_an_answer_does_and_thoughts_are_cut(
    monkeypatch, files, tiny_model, tiny_tokenizer
):
    tiny_tokenizer.chat_template = SWITCH  # an empty thought stands before an answer
    found = harness_scores(tiny_model, tiny_tokenizer, [files["mychoices"]], chat=True, items=True)
    rows = task_rows(read_task(files["mychoices"], chat=True), tiny_tokenizer, None)
    ours = [-answer.nll for answer in answer_scores(tiny_model, rows, 0)]
    theirs = [float(response[0]) for item in found["mychoices"]["items"] for response in item["responses"]]
    assert theirs == pytest.approx(ours, rel=1e-4)

    written = iter(["<think>\nlong,\n\nlong\n</think>\n\nno comma<|im_end|>", "plain<|im_end|>", "<think>\nnever ends"])
    stops = []

    def generate(input_ids, stopping_criteria, eos_token_id, **_):
        stops.append(eos_token_id)
        texts = [tiny_tokenizer(next(written))["input_ids"] for _ in input_ids]
        return torch.tensor([[*ids, *text, *[0] * (60 - len(text))]
                             for ids, text in zip(input_ids.tolist(), texts, strict=True)])

    monkeypatch.setattr(tiny_model, "generate", generate)
    task = read_task(files["myorders"], generate=True)
    with pytest.warns(UserWarning, match="1 of 3 texts generated for lm-eval hold a thought that does not end"):
        found = harness_scores(tiny_model, tiny_tokenizer, [task], chat=True, max_new_tokens=60, items=True)
    assert sorted(item["responses"][0] for item in found["myorders"]["items"]) == ["", "no comma", "plain"]
    assert stops == [[2]]


@needs_lm_eval
def test_the_model_is_left_as_it_was(files, tiny_model, tiny_tokenizer):
    tiny_model.train()
    tiny_model.config.use_cache = False
    tiny_tokenizer.padding_side, tiny_tokenizer.pad_token = "right", None
    weights = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    harness_scores(tiny_model, tiny_tokenizer, [files["mywords"]])
    assert all(module.training for module in tiny_model.modules())
    assert tiny_model.config.use_cache is False
    assert (tiny_tokenizer.padding_side, tiny_tokenizer.pad_token) == ("right", None)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tiny_model.state_dict().items())


@pytest.mark.slow
@needs_lm_eval
def test_what_cannot_be_scored(tmp_path, files, tiny_model, tiny_tokenizer):
    def refused(task, sentence, **options):
        with pytest.raises(CofituneError, match=sentence):
            harness_scores(tiny_model, tiny_tokenizer, [task], **options)

    rows = [{"prompt": "x", "completion": "y"}] * 2
    refused(write_jsonl(tmp_path / "r.jsonl", rows), "is of the kind response, which lm-eval is not given here")
    refused("no_such_task", "lm-eval knows no task 'no_such_task', and there is no such file")
    refused("piqa", "cannot load the task 'piqa', whose data come from the hub .*; without a network name local data")
    refused(tmp_path / "none.jsonl", "none.jsonl")
    refused(files["mywords"], "limit of lm-eval's items is 0", limit=0)
    row = {"context": "a", "continuation": "b", "chat": True}
    refused(write_jsonl(tmp_path / "c.jsonl", [row] * 2), "with lm-eval it is all or nothing")


def test_without_lm_eval(monkeypatch, tiny_model, tiny_tokenizer):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(CofituneError, match=r"lm-eval's scores need lm_eval: pip install 'cofitune-fast\[eval\]'"):
        harness.harness_scores(tiny_model, tiny_tokenizer, ["piqa"])
