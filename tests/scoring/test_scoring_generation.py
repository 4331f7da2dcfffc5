"""Greedy generation, what ends it, what it leaves as it was, and the tasks that need it."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from thinking_templates import CHANNELS, OPENED, SWITCH
from tiny import make_tiny_model, write_jsonl

from cofitune_fast.data import Example, encode_prompt
from cofitune_fast.errors import CofituneError
from cofitune_fast.memory import MemorySettings
from cofitune_fast.memory.cached_prefix import open_prefix
from cofitune_fast.models.fingerprint import tensor_digests
from cofitune_fast.models.generate import continue_prompts
from cofitune_fast.models.mode import left_as_found
from cofitune_fast.regions import Region
from cofitune_fast.scoring import (
    Score,
    Task,
    generate_texts,
    generation,
    generation_score,
    read_suite,
    score_suite,
    tasks_to_write,
)
from cofitune_fast.scoring import tasks as tasks_module

needs_metrics = pytest.mark.skipif(
    find_spec("sacrebleu") is None or find_spec("rouge_score") is None, reason="the extra eval is not installed")
needs_ifeval = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("lm_eval", "langdetect", "nltk", "immutabledict")),
    reason="the extra eval is not installed")

PROMPTS = [[{"role": "user", "content": text}] for text in ("hi", "a longer question than that", "so", "one two three")]


def user(text):
    return [{"role": "user", "content": text}]


def greedy(model, tokenizer, messages, count):
    """Without cache, padding or batch; the text up to the end of turn."""
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    start = len(ids)
    for _ in range(count):
        with torch.no_grad():
            ids = [*ids, model(torch.tensor([ids])).logits[0, -1].argmax().item()]
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_texts_are_those_of_greedy_decoding_whatever_the_model_is_set_to(tiny_tokenizer):
    tiny_model = make_tiny_model(tie_word_embeddings=False)  # a tied head repeats the last token
    with torch.no_grad():
        tiny_model.lm_head.weight.mul_(50)
    wanted = [greedy(tiny_model, tiny_tokenizer, messages, 12) for messages in PROMPTS]
    assert len(set(wanted)) > 1
    settings = tiny_model.generation_config
    settings.repetition_penalty, settings.do_sample, settings.temperature, settings.max_length = 9.0, True, 5.0, 3
    for most in (1, 200, 10000):
        assert generate_texts(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=12,
                              max_tokens_per_batch=most) == wanted


def scripted(monkeypatch, tokenizer, texts):
    """The model writes these texts, one after the other in the order of the prompts."""
    ids = {len(prompt): tokenizer(text, add_special_tokens=False)["input_ids"] for prompt, text in texts}
    monkeypatch.setattr(generation, "continue_prompts", lambda model, prompts, config, **options: [
        ids[len(prompt)] for prompt in prompts])


def encoded(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def test_a_response_ends_at_the_end_of_turn(monkeypatch, tiny_model, tiny_tokenizer):
    first, second, third = PROMPTS[0], PROMPTS[1], PROMPTS[3]
    scripted(monkeypatch, tiny_tokenizer, [
        (encoded(tiny_tokenizer, first), "yes<|im_end|> more<|im_end|>"), (encoded(tiny_tokenizer, second), "no end"),
        (encoded(tiny_tokenizer, third), "<|im_end|><pad>"),
    ])
    assert generate_texts(tiny_model, tiny_tokenizer, [first, second, third], max_new_tokens=5) == ["yes", "no end", ""]


def test_an_end_of_turn_of_several_tokens_stops_too(monkeypatch, tiny_model, tiny_tokenizer):
    written = []

    def spy(*arguments, **options):
        written.extend(continue_prompts(*arguments, **options))
        return written

    monkeypatch.setattr(generation, "continue_prompts", spy)
    template = tiny_tokenizer.chat_template.replace("<|im_end|>", ":::")
    tiny_tokenizer.chat_template = template.replace("assistant\n", "assistant:")
    # the tiny model with its tied head repeats the last token of the prompt
    assert generate_texts(tiny_model, tiny_tokenizer, [PROMPTS[0]], max_new_tokens=40) == [""]
    assert tiny_tokenizer.decode(written[0]) == ":::"


@needs_metrics
def test_exact_answers_of_a_response_task(monkeypatch, tiny_model, tiny_tokenizer):
    items = [Example(user("1" * n), f"so <<1>>\n#### {n},000") for n in (1, 2, 3)]
    scripted(monkeypatch, tiny_tokenizer, [
        (encoded(tiny_tokenizer, item.prompt), text) for item, text in zip(
            items, ("#### 1000.<|im_end|>", "it is 2000", "4 #### 4"), strict=True)
    ])
    score = generation_score(tiny_model, tiny_tokenizer, Task("sums", "response", items, metric="exact_answer"))
    assert (score.value, score.metric, score.n) == (pytest.approx(1 / 3), "exact_answer", 3)
    assert score.se == pytest.approx((1 / 3 * 2 / 3 / 2) ** 0.5)
    assert score.metrics["last_number"] == pytest.approx(2 / 3)
    assert {"bleu", "chrf", "rouge_l", "bleu_se"} < set(score.metrics)
    plain = [Example(user("x"), "y")] * 2 + [Example(user("x"), "!")]
    scripted(monkeypatch, tiny_tokenizer, [(encoded(tiny_tokenizer, user("x")), "y")])
    score = generation_score(tiny_model, tiny_tokenizer, Task("plain", "response", plain))
    assert (score.metric, score.metrics["rouge_l"], score.metrics["rouge_l_se"]) == ("chrf", 1, 0)
    assert not {"bleu", "exact_answer"} & set(score.metrics)
    assert score.notes == {
        "bleu": "not given: no reference has the four words or characters that it counts together",
        "rouge_l": "1 of 3 rows are left out, as their references have no word"}
    assert Score.from_dict(json.loads(json.dumps(score.to_dict(items=True)))) == score
    for metric, reason in (("bleu", "no reference has the four"), ("rouge_l", "2 of 2 rows have no word")):
        with pytest.raises(CofituneError, match=f"plain asks for {metric}, but {reason}"):
            generation_score(tiny_model, tiny_tokenizer, Task("plain", "response", [plain[2]] * 2, metric=metric))
    with pytest.raises(CofituneError, match="asks for exact_answer, but not every response has a number after ####"):
        generation_score(tiny_model, tiny_tokenizer, Task("plain", "response", plain, metric="exact_answer"))


@needs_metrics
@pytest.mark.parametrize(("template", "written"), [
    (SWITCH, "<think>\n\n</think>\n\n{}<|im_end|>"), (SWITCH, "<think>\nwell, 3?\n</think>\n\n{}<|im_end|>"),
    (OPENED, "well\n</think>\n\n{}<|im_end|>"), (CHANNELS, "<|channel|>final<|message|>{}<|im_end|>"),
    (CHANNELS, "<|channel|>analysis<|message|>3?<|end|><|im_start|>assistant<|channel|>final<|message|>{}<|im_end|>"),
])
def test_the_answer_after_the_thought_is_scored(monkeypatch, tiny_model, tiny_tokenizer, template, written):
    tiny_tokenizer.chat_template = template
    items = [Example(user("1" * n), f"it is one of {n}\n#### {n}") for n in (1, 2, 3)]
    task = Task("t", "response", [*items[:2], replace(items[2], response=f"<think>a</think>{items[2].response}")])
    names = ("bleu", "chrf", "rouge_l", "exact_answer", "last_number")
    prompts = [encode_prompt(tiny_tokenizer, item.prompt) for item in items]
    scripted(monkeypatch, tiny_tokenizer, [
        (ids, written.format(item.response)) for ids, item in zip(prompts, items, strict=True)])
    score = generation_score(tiny_model, tiny_tokenizer, task)
    assert [item.text for item in score.items] == [item.response for item in items]
    assert [score.metrics[name] for name in names] == pytest.approx([1.0] * 5)
    scripted(monkeypatch, tiny_tokenizer, [(ids, "<think>\n#### 3") for ids in prompts])
    with pytest.warns(UserWarning, match=r"3 of 3 generated texts hold a thought that does not end within 256 tokens"):
        score = generation_score(tiny_model, tiny_tokenizer, task)
    assert [score.metrics[name] for name in names] == [0.0] * 5


def states(model, tokenizer):
    return {
        "training": [module.training for module in model.modules()], "grad": torch.is_grad_enabled(),
        "use_cache": model.config.use_cache,
        "generation": (id(model.generation_config), model.generation_config.to_dict()),
        "tokenizer": (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token),
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
    }


def disturb(model, tokenizer):
    model.train()
    torch.set_grad_enabled(True)
    model.config.use_cache = True
    model.generation_config.temperature, model.generation_config.strange = 3.0, 1
    model.generation_config = type(model.generation_config)()
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    tokenizer.pad_token = tokenizer.eos_token
    random.random(), np.random.rand(), torch.rand(1)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("pad", ["<pad>", None])
def test_everything_is_left_as_it_was(tiny_model, tiny_tokenizer, fails, pad):
    tiny_model.train()
    tiny_model.model.layers[1].eval()
    tiny_model.config.use_cache = False
    tiny_tokenizer.padding_side, tiny_tokenizer.pad_token = "right", pad
    before = states(tiny_model, tiny_tokenizer)
    try:
        with left_as_found(tiny_model, tiny_tokenizer):
            assert not any(module.training for module in tiny_model.modules())
            assert not torch.is_grad_enabled()
            disturb(tiny_model, tiny_tokenizer)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    after = states(tiny_model, tiny_tokenizer)
    assert {name: after[name] for name in before if after[name] != before[name]} == {}


@pytest.mark.parametrize("fails", [False, True])
def test_generation_leaves_everything_as_it_was(monkeypatch, tiny_model, tiny_tokenizer, fails):
    tiny_model.train()
    tiny_model.config.use_cache = False
    before = states(tiny_model, tiny_tokenizer)
    if fails:
        def generate(**_):
            disturb(tiny_model, tiny_tokenizer)
            raise RuntimeError("no memory")

        monkeypatch.setattr(tiny_model, "generate", generate)
        with pytest.raises(RuntimeError, match="no memory"):
            generate_texts(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=2)
    else:
        generate_texts(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=2)
    after = states(tiny_model, tiny_tokenizer)
    assert {name: after[name] for name in before if after[name] != before[name]} == {}


def test_room_for_the_response(tiny_model, tiny_tokenizer):
    length = len(encoded(tiny_tokenizer, PROMPTS[1]))
    tiny_model.config.max_position_embeddings = length + 2
    texts = generate_texts(tiny_model, tiny_tokenizer, [PROMPTS[1]], max_new_tokens=50)
    assert texts == [greedy(tiny_model, tiny_tokenizer, PROMPTS[1], 2)]
    tiny_model.config.max_position_embeddings = length
    with pytest.raises(CofituneError, match=rf"x:2 has {length} tokens, which leaves the model no room to answer"):
        generate_texts(tiny_model, tiny_tokenizer, PROMPTS[:2], max_new_tokens=50, where=["x:1", "x:2"])


IFEVAL = [
    {"prompt": "a" * n, "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
     "kwargs": [{}, {}]} for n in (1, 2, 3)
]


@pytest.fixture
def suite_folder(tmp_path):
    rows = [{"prompt": "x", "completion": "y y y y"}] * 3
    for name in ("speciality/mine", "knowledge/k", "reasoning/r", "instruction/alpaca"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    write_jsonl(tmp_path / "instruction" / "ifeval.jsonl", IFEVAL)
    return tmp_path


@needs_metrics
@needs_ifeval
def test_a_suite_takes_generated_tasks_in_when_asked(monkeypatch, suite_folder, tiny_model, tiny_tokenizer):
    suite = read_suite(suite_folder, generate=True)
    assert [task.name for task in suite.instruction] == ["alpaca", "ifeval"] and not suite.notes
    mine = {"path": suite_folder / "speciality" / "mine.jsonl", "metric": "bleu", "max_new_tokens": 3}
    groups = {group: suite_folder / group for group in ("knowledge", "reasoning", "instruction")}
    suite = read_suite({**groups, "generate": True}, speciality=mine)
    script = ("all lower here, fine", "Sure!\nall lower", "no comma and lower case in this text")
    texts = {len(encoded(tiny_tokenizer, user(row["prompt"]))): text for row, text in zip(IFEVAL, script, strict=True)}
    write = lambda model, prompts, config, **_: [  # noqa: E731
        tiny_tokenizer(texts[len(prompt)], add_special_tokens=False)["input_ids"] for prompt in prompts]
    monkeypatch.setattr(generation, "continue_prompts", write)
    scores = score_suite(tiny_model, tiny_tokenizer, suite)
    followed = scores.tasks["instruction"]["ifeval"]
    assert [item.followed for item in followed.items] == [(False, True), (True, False), (True, True)]
    assert [item.loose for item in followed.items] == [(False, True), (True, True), (True, True)]
    assert followed.metric == "prompt_level_strict_acc"
    metrics = ("prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc")
    assert [followed.metrics[name] for name in metrics] == pytest.approx([1 / 3, 4 / 6, 2 / 3, 5 / 6])
    assert followed.value == followed.metrics["prompt_level_strict_acc"]
    assert scores.instruction == pytest.approx((followed.value + scores.tasks["instruction"]["alpaca"].value) / 2)
    assert scores.tasks["speciality"]["mine"].metric == "bleu"
    assert [task.name for task in tasks_to_write(mine["path"], suite_folder)] == ["mine", "ifeval"]


@needs_metrics
def test_the_prefix_cache_does_not_disturb_generation(tmp_path, suite_folder, tiny_model, tiny_tokenizer):
    suite = read_suite(suite_folder, speciality={
        "path": suite_folder / "speciality" / "mine.jsonl", "metric": "chrf", "max_new_tokens": 6})
    plain = score_suite(tiny_model, tiny_tokenizer, suite)
    prefix, _ = open_prefix(tiny_model, Region.parse("ffn.up@2-3"), tensor_digests(tiny_model),
                            MemorySettings(), 10000)
    for _ in range(2):
        with prefix:
            assert score_suite(tiny_model, tiny_tokenizer, suite, prefix=prefix) == plain
        prefix, _ = open_prefix(tiny_model, Region.parse("ffn.up@2-3"), tensor_digests(tiny_model),
                                MemorySettings(), 10000)


@needs_ifeval
@pytest.mark.parametrize(("change", "sentence"), [
    ({"instruction_id_list": []}, "needs a list of at least one name as 'instruction_id_list'"),
    ({"kwargs": [{}]}, "needs a list of 2 mappings as 'kwargs'"),
    ({"prompt": " "}, "needs a text that is not empty as 'prompt'"),
])
def test_bad_instructions(tmp_path, change, sentence):
    path = write_jsonl(tmp_path / "i.jsonl", [{**IFEVAL[0], **change}] * 2)
    with pytest.raises(CofituneError, match=sentence):
        tasks_module.read_task(path, generate=True)


@needs_ifeval
def test_an_unknown_instruction(tmp_path, tiny_model, tiny_tokenizer):
    row = {"prompt": "x", "instruction_id_list": ["punctuation:none"], "kwargs": [{}]}
    task = tasks_module.read_task(write_jsonl(tmp_path / "i.jsonl", [row] * 2), generate=True)
    with pytest.raises(CofituneError, match=r"i.jsonl:1 has the instruction 'punctuation:none', which lm-eval"):
        generation_score(tiny_model, tiny_tokenizer, task)


def test_missing_packages_are_said_when_the_file_is_read(monkeypatch, suite_folder):
    monkeypatch.setattr(tasks_module, "find_spec", lambda name: None)
    with pytest.raises(CofituneError, match=r"IFEval needs lm_eval, langdetect, .*pip install 'cofitune-fast\[eval\]'"):
        read_suite(suite_folder, generate=True)
    with pytest.raises(CofituneError, match="The metric bleu needs sacrebleu, rouge_score: pip install"):
        tasks_module.read_task(suite_folder / "speciality" / "mine.jsonl", metric="bleu")


def test_other_kinds_are_refused(tiny_model, tiny_tokenizer):
    task = Task("k", "choice", [None, None])
    with pytest.raises(CofituneError, match="of the kind choice, for which no text is generated"):
        generation_score(tiny_model, tiny_tokenizer, task)
    with pytest.raises(CofituneError, match="max_new_tokens 0; it must be at least 1"):
        Task("r", "response", [None, None], max_new_tokens=0)
