from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from families import FAMILIES, tiny_family
from thinking_templates import CHANNELS, OPENED, SWITCH
from tiny import CHATML, make_tiny_model

from cofitune_fast.data import Encoded, Example, encode_examples
from cofitune_fast.errors import CofituneError
from cofitune_fast.memory.abilities import trie_ability
from cofitune_fast.scoring import (
    ChoiceItem,
    ContinuationItem,
    Suite,
    Task,
    answer_scores,
    harness,
    score_suite,
    score_task,
)
from cofitune_fast.scoring import answers as scoring
from cofitune_fast.scoring.score import task_rows

TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 3e-2, "atol": 3e-2}}


def user(text):
    return [{"role": "user", "content": text}]


CHOICES = [
    ChoiceItem("Grass is", ("green", "a long blue line", "red"), 0, "f:1"),
    ChoiceItem("Question: two?\n", ("2", "twenty"), 1, "f:2"),
    ChoiceItem("The sky ", ("is blue", "is", "was never there"), 2, "f:3"),
]
CONTINUATIONS = [ContinuationItem("one two", "three"), ContinuationItem("a much longer text that goes", "on and on")]
EXAMPLES = [Example(user("hi"), "yo"), Example(user("what is it?"), "a long answer, this one"), Example(user("?"), "!")]


def plain(model, ids, start):
    """Log-probabilities (float64) of ids[start:], and whether each is the argmax: one row, all logits."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].double()
    targets = torch.tensor(ids[start:])
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0], logits.argmax(-1) == targets


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def mean_nll(model, tokenizer, text, answer):
    start = len(ids_of(tokenizer, text))
    return -plain(model, ids_of(tokenizer, text + answer), start)[0].mean().item()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_token_scores_equal_plain_ones(family, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK_BYTES", 3 * 2 * 4 * 260)  # chunks of 3 positions
    model = make_tiny_model(family)
    (row,) = encode_examples(EXAMPLES[1:2], tiny_tokenizer)
    expected, hits = plain(model, row.input_ids, row.response_start)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, row.response_start - 1 : -1]
    targets = torch.tensor(row.input_ids[row.response_start :])
    order = torch.arange(len(targets)).flip(0)
    nlls, hit = scoring.token_scores(logits.flip(0), targets, order)
    torch.testing.assert_close(nlls, -expected, rtol=1e-5, atol=1e-5)
    assert hit.tolist() == hits.tolist()
    score = answer_scores(model, [row], 0)[0]
    assert score.nll == pytest.approx(-expected.sum().item(), rel=1e-5)
    assert score.tokens == len(expected) == len("a long answer, this one") + 1


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma3"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_neither_padding_nor_company_matters(family, dtype, tiny_tokenizer):
    model = make_tiny_model(family, dtype=dtype)
    rows = encode_examples(EXAMPLES, tiny_tokenizer)
    expected = torch.tensor([-plain(model, row.input_ids, row.response_start)[0].sum() for row in rows])
    for order, budget in (([0, 1, 2], 1), ([0, 1, 2], 10_000), ([2, 0, 1], 60)):
        scores = answer_scores(model, [rows[i] for i in order], 0, budget)
        torch.testing.assert_close(
            torch.tensor([score.nll for score in scores]), expected[order].float(), **TOLERANCE[dtype]
        )
        assert [score.tokens for score in scores] == [len(rows[i].input_ids) - rows[i].response_start for i in order]


@pytest.mark.parametrize("chat", [False, True])
def test_choices_by_hand(chat, tiny_model, tiny_tokenizer):
    score = score_task(tiny_model, tiny_tokenizer, Task("t", "choice", CHOICES, chat=chat))
    for item, got in zip(CHOICES, score.items, strict=True):
        if chat:
            text = f"<|im_start|>user\n{item.query}<|im_end|>\n<|im_start|>assistant\n"
            answers = list(item.choices)
        else:
            text = item.query.rstrip(" ")
            answers = [choice if text.endswith("\n") else f" {choice}" for choice in item.choices]
        means = [mean_nll(tiny_model, tiny_tokenizer, text, answer) for answer in answers]
        assert got.correct == (means.index(min(means)) == item.gold)
        assert got.tokens == len(answers[item.gold])
        assert got.nll == pytest.approx(means[item.gold] * got.tokens, rel=1e-5)
    assert (score.metric, score.n) == ("accuracy", 3)
    assert score.value == score.metrics["accuracy"] == sum(item.correct for item in score.items) / 3
    tokens = sum(item.tokens for item in score.items)
    assert score.metrics["likelihood"] == pytest.approx(math.exp(-sum(item.nll for item in score.items) / tokens))


@pytest.mark.parametrize(("template", "before"), [
    (SWITCH, "<think>\n\n</think>\n\n"), (OPENED, "<think>\n\n</think>\n\n"),
    (CHANNELS, "<|channel|>final<|message|>"),
    (CHATML.replace("{{ message['content']", "{{ ' ' + message['content']"), "assistant\n "),
])
def test_a_choice_in_a_chat_stands_where_an_answer_does(tiny_tokenizer, template, before):
    tiny_tokenizer.chat_template = template
    for row, choice in zip(task_rows(Task("t", "choice", CHOICES, chat=True), tiny_tokenizer, None),
                           [choice for item in CHOICES for choice in item.choices], strict=True):
        text = tiny_tokenizer.decode(row.input_ids)
        assert text.endswith(before + choice)
        assert tiny_tokenizer.decode(row.input_ids[row.response_start :]).lstrip(" ") == choice


def test_a_choice_that_begins_with_a_blank_gets_one(tiny_tokenizer):
    items = [ChoiceItem("so", ("a", " b"), 0), ChoiceItem("so\n", ("a", " b"), 0)]
    rows = task_rows(Task("t", "choice", items), tiny_tokenizer, None)
    assert [tiny_tokenizer.decode(row.input_ids) for row in rows] == ["so a", "so b", "so\na", "so\n b"]
    rows, config = harness._choice(Task("t", "choice", items[:1] * 2), harness.join)
    assert (config["target_delimiter"], rows[0]["choices"]) == (" ", ["a", "b"])


def test_items_may_ask_for_the_chat_template(tiny_model, tiny_tokenizer):
    for kind, items in (("choice", CHOICES), ("continuation", CONTINUATIONS)):
        asking = Task("t", kind, [items[0], replace(items[1], chat=True)])
        plainly, chatting = (Task("t", kind, items[:2], chat=chat) for chat in (False, True))
        scores = [score_task(tiny_model, tiny_tokenizer, task).items for task in (asking, plainly, chatting)]
        for got, expected in zip(scores[0], (scores[1][0], scores[2][1]), strict=True):
            assert got.nll == pytest.approx(expected.nll, rel=1e-5)
        assert scores[1][1].nll != pytest.approx(scores[2][1].nll, rel=1e-4)


def test_the_best_choice_wins_wherever_it_stands(tiny_model, tiny_tokenizer):
    names = ("green", "a long blue line", "red")
    means = [mean_nll(tiny_model, tiny_tokenizer, "Grass is", f" {name}") for name in names]
    for gold in range(3):
        task = Task("t", "choice", [ChoiceItem("Grass is", names, gold)] * 2)
        assert score_task(tiny_model, tiny_tokenizer, task).value == float(means[gold] == min(means))


def test_continuations_and_responses_by_hand(tiny_model, tiny_tokenizer):
    score = score_task(tiny_model, tiny_tokenizer, Task("t", "continuation", CONTINUATIONS))
    for item, got in zip(CONTINUATIONS, score.items, strict=True):
        mean = mean_nll(tiny_model, tiny_tokenizer, item.context, f" {item.continuation}")
        assert got.nll == pytest.approx(mean * (len(item.continuation) + 1), rel=1e-5)
    score = score_task(tiny_model, tiny_tokenizer, Task("t", "response", EXAMPLES))
    nll = 0.0
    for item in EXAMPLES:
        text = f"<|im_start|>user\n{item.prompt[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
        nll += mean_nll(tiny_model, tiny_tokenizer, text, f"{item.response}<|im_end|>") * (len(item.response) + 1)
    assert score.metrics["nll"] == pytest.approx(nll / sum(len(item.response) + 1 for item in EXAMPLES), rel=1e-5)
    assert score.value == pytest.approx(math.exp(-score.metrics["nll"]))


def test_exact_is_what_greedy_decoding_writes(tiny_model, tiny_tokenizer):
    prompt = encode_examples(EXAMPLES[:1], tiny_tokenizer)[0]
    start = prompt.response_start
    greedy = tiny_model.generate(
        torch.tensor([prompt.input_ids[:start]]), max_new_tokens=6, do_sample=False, eos_token_id=None
    )[0].tolist()
    changed = [*greedy[:-1], (greedy[-1] + 1) % 260]
    rows = [Encoded(greedy, start), Encoded(changed, start), Encoded([*changed[:-1]], start)]
    assert [score.correct for score in answer_scores(tiny_model, rows, 0)] == [True, False, True]


@pytest.mark.parametrize("kind", ["score", "error"])
def test_modes_are_restored(kind, tiny_model, tiny_tokenizer):
    tiny_model.train()
    tiny_model.model.layers[1].eval()
    tiny_model.config.use_cache = True
    before = {name: module.training for name, module in tiny_model.named_modules()}
    scoring.takes_tries(tiny_model, 2)  # its trial is not counted
    seen = []
    hook = tiny_model.lm_head.register_forward_hook(
        lambda module, *_: seen.append((tiny_model.training, torch.is_grad_enabled()))
    )
    if kind == "error":
        with torch.no_grad():
            tiny_model.model.norm.weight.fill_(float("nan"))
        with pytest.raises(CofituneError, match="gives f:1 a log-likelihood that is not finite"):
            score_task(tiny_model, tiny_tokenizer, Task("t", "choice", [CHOICES[0]] * 2))
    else:
        score_task(tiny_model, tiny_tokenizer, Task("t", "choice", CHOICES))
    hook.remove()
    assert set(seen) == {(False, False)}
    assert {name: module.training for name, module in tiny_model.named_modules()} == before
    assert tiny_model.config.use_cache is True
    assert torch.is_grad_enabled()


def test_only_answer_positions_reach_the_head(tiny_model, tiny_tokenizer):
    trie_ability(tiny_model)  # tried once, with logits at every position
    seen = []
    hook = tiny_model.lm_head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[:2]))
    score = score_task(tiny_model, tiny_tokenizer, Task("t", "continuation", CONTINUATIONS))
    hook.remove()
    assert seen == [(1, sum(item.tokens for item in score.items))]


def test_dropout_is_off(tiny_tokenizer):
    model = make_tiny_model(attention_dropout=0.5).train()
    task = Task("t", "response", EXAMPLES)
    first = score_task(model, tiny_tokenizer, task)
    assert first == score_task(model, tiny_tokenizer, task) == score_task(model.eval(), tiny_tokenizer, task)


def test_long_queries_lose_their_begin(tiny_model, tiny_tokenizer):
    long = [ContinuationItem("x" * 600 + "tail", "end"), CONTINUATIONS[0]]
    score = score_task(tiny_model, tiny_tokenizer, Task("t", "continuation", long))
    context = ("x" * 600 + "tail")[-(512 - 4) :]
    assert score.items[0].nll == pytest.approx(mean_nll(tiny_model, tiny_tokenizer, context, " end") * 4, rel=1e-5)
    with pytest.raises(CofituneError, match=r"f:3 has 7 tokens before an answer of 8; .* together at most 8"):
        score_task(tiny_model, tiny_tokenizer, Task("t", "choice", CHOICES[2:] * 2), max_length=8)


def test_too_few_items_that_fit_are_told(tiny_model, tiny_tokenizer):
    examples = [EXAMPLES[0], Example(user("x" * 600), "y", "f:2")]
    with (
        pytest.warns(UserWarning, match="1 examples dropped"),
        pytest.raises(CofituneError, match="Of the task t fewer than 2 items fit into 512 tokens"),
    ):
        score_task(tiny_model, tiny_tokenizer, Task("t", "response", examples))


def test_a_suite_is_the_sum_of_its_tasks(tiny_model, tiny_tokenizer):
    suite = Suite(
        speciality=[Task("s", "response", EXAMPLES)],
        knowledge=[Task("k", "choice", CHOICES), Task("k2", "choice", CHOICES, metric="likelihood")],
        reasoning=[Task("r", "continuation", CONTINUATIONS)],
        instruction=[Task("i", "response", EXAMPLES[:2])],
    )
    told = []
    scores = score_suite(tiny_model, tiny_tokenizer, suite, on_task=lambda name, score: told.append((name, score)))
    assert [name for name, _ in told] == ["s", "k", "k2", "r", "i"]
    for group, tasks in suite.groups().items():
        for task in tasks:
            assert scores.tasks[group][task.name] == score_task(tiny_model, tiny_tokenizer, task)
    assert scores.knowledge == pytest.approx((told[1][1].metrics["accuracy"] + told[2][1].metrics["likelihood"]) / 2)
    with pytest.raises(CofituneError, match="no task in the group reasoning"):
        Suite(suite.speciality, suite.knowledge, [], suite.instruction)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("budget", [1, 80, 4096])
def test_rows_score_the_same_as_tries_and_padded(family, dtype, budget, tiny_tokenizer, monkeypatch):
    model = make_tiny_model(family, dtype=dtype)
    rows = encode_examples(EXAMPLES * 2, tiny_tokenizer)
    assert scoring.takes_tries(model, 54) == (family != "gemma2")  # whose logits in attention are capped: no SDPA
    packed = answer_scores(model, rows, 0, budget)
    monkeypatch.setattr(scoring, "takes_tries", lambda *_: False)
    for one, other in zip(packed, answer_scores(model, rows, 0, budget), strict=True):
        assert one.tokens == other.tokens
        if dtype == torch.float32:
            assert one.correct == other.correct
        torch.testing.assert_close(torch.tensor(one.nll), torch.tensor(other.nll), **TOLERANCE[dtype])


def test_a_model_that_takes_no_tries_has_the_loss_of_transformers(tiny_tokenizer):
    if "stablelm" not in FAMILIES:
        pytest.skip("not in this release of transformers")
    model, rows = tiny_family("stablelm"), encode_examples(EXAMPLES, tiny_tokenizer)
    for row, answer in zip(rows, answer_scores(model, rows, 0), strict=True):
        ids = torch.tensor([row.input_ids])
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < row.response_start, -100)
        assert answer.nll / answer.tokens == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=1e-5)


def test_what_rows_share_is_computed_once(tiny_model, tiny_tokenizer):
    scoring.takes_tries(tiny_model, 2)  # its trial is not counted
    seen = []
    hook = tiny_model.model.layers[0].mlp.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].shape))
    answer_scores(tiny_model, [Encoded([5, 6, 7, 8], 2), Encoded([5, 6, 7, 9], 3), Encoded([5, 6, 4], 1)], 0)
    hook.remove()
    assert seen == [(1, 3, 32)]
    assert tiny_model.config._attn_implementation == "sdpa"


def test_a_row_longer_than_a_sliding_window_is_not_packed(tiny_tokenizer):
    rows = encode_examples(EXAMPLES, tiny_tokenizer)
    model = make_tiny_model("mistral", sliding_window=8)
    assert not scoring.takes_tries(model, max(len(row.input_ids) for row in rows))
    expected = [plain(model, row.input_ids, row.response_start)[0] for row in rows]
    for score, wanted in zip(answer_scores(model, rows, 0), expected, strict=True):
        assert score.nll == pytest.approx(-wanted.sum().item(), rel=1e-5)
