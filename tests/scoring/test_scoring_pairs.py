"""Two models on the same items: differences, intervals and flips by hand, and a common unit for other tokenizers."""

from __future__ import annotations

import math

import pytest

from cofitune_fast.data import Example
from cofitune_fast.errors import CofituneError
from cofitune_fast.scoring import (
    ChoiceItem,
    ContinuationItem,
    ItemScore,
    Task,
    mcnemar,
    pair_tasks,
    paired_difference,
    pairs_entry,
)
from cofitune_fast.scoring.results import make_score

CHOICES = Task("choose", "choice", [ChoiceItem(f"q{n}", ("no", "yes"), n % 2, f"f:{n}") for n in range(4)])
WORDS = Task("words", "continuation", [ContinuationItem("so", word, "w") for word in ("one", "four", "größe")])
RESPONSES = Task("task", "response", [Example([{"role": "user", "content": f"p{n}"}], "r", f"r:{n}") for n in range(3)])
TASKS = {"speciality": [RESPONSES], "knowledge": [CHOICES], "reasoning": [WORDS],
         "instruction": [Task("do", "response", RESPONSES.items)]}


def score(task, right, *, nll=1.0, tokens=2):
    items = [ItemScore(nll + n, tokens, letter == "x") for n, letter in enumerate(right)]
    return make_score(items, task.primary, "accuracy" if task.kind == "choice" else "exact")


def scores(**right):
    return {group: {task.name: score(task, right[group]) for task in tasks} for group, tasks in TASKS.items()}


def test_every_number_of_a_comparison():
    first = scores(speciality="x.x", knowledge="xx.x", reasoning="..x", instruction="xxx")
    second = scores(speciality="x..", knowledge="..xx", reasoning="..x", instruction="xx.")
    entry = pairs_entry(pair_tasks(first, second, TASKS))
    one = entry["tasks"]["knowledge"]["choose"]
    value, se = paired_difference(first["knowledge"]["choose"], second["knowledge"]["choose"])
    assert (one["first"], one["second"], one["value"], one["se"], one["n"]) == (0.75, 0.5, value, se, 4)
    half = 1.959964 * math.sqrt(1.5 + 2.5 - 1 / 6) / 6  # 1 lost and 2 gained of 4, with half an item in each cell
    assert (one["low"], one["high"]) == (pytest.approx(1 / 6 - half), pytest.approx(1 / 6 + half))
    assert one["flips"] == {"right_to_wrong": 1, "wrong_to_right": 2, "items": 4, "p": mcnemar(1, 2)}
    assert {group: (flips["right_to_wrong"], flips["wrong_to_right"], flips["items"])
            for group, flips in entry["flips"].items()} == {
        "speciality": (0, 1, 3), "knowledge": (1, 2, 4), "reasoning": (0, 0, 3), "instruction": (0, 1, 3),
        "vers": (1, 3, 10), "all": (1, 4, 13)}
    assert [(item["task"], item["index"], item["way"], item["where"], item["prompt"], item["answer"])
            for item in entry["flipped"]] == [
        ("task", 2, "wrong_to_right", "r:2", "p2", "r"), ("choose", 0, "wrong_to_right", "f:0", "q0", "no"),
        ("choose", 1, "wrong_to_right", "f:1", "q1", "yes"), ("choose", 2, "right_to_wrong", "f:2", "q2", "no"),
        ("do", 2, "wrong_to_right", "r:2", "p2", "r")]
    vers = entry["differences"]["vers"]
    assert vers["value"] == vers["first"] - vers["second"] == pytest.approx(0.25 / 3)
    normal = [1.959964 * entry["tasks"][group][task]["se"] for group, task in (("reasoning", "words"),
                                                                              ("instruction", "do"))]
    below = math.hypot(one["value"] - one["low"], *normal) / 3
    assert vers["low"] == pytest.approx(vers["value"] - below)


def test_no_flip_is_no_certainty():
    same = scores(speciality="x.x", knowledge="xx.x", reasoning="..x", instruction="xxx")
    one = pairs_entry(pair_tasks(same, same, TASKS))["tasks"]["knowledge"]["choose"]
    assert one["value"] == one["se"] == 0
    assert one["high"] == -one["low"] == pytest.approx(1.959964 / 6)


def test_likelihoods_of_other_tokens_are_compared_per_byte():
    tasks = {"reasoning": [WORDS]}
    first = {"reasoning": {"words": score(WORDS, "xxx", nll=2.0)}}
    second = {"reasoning": {"words": score(WORDS, "xx.", nll=3.0, tokens=5)}}
    one = pair_tasks(first, second, tasks)["reasoning"]["words"]
    lengths = 3 + 4 + 7  # bytes of UTF-8
    assert one.per_byte and one.first.value == pytest.approx(math.exp(-(2 + 3 + 4) / lengths))
    assert one.difference == pytest.approx(one.first.value - math.exp(-(3 + 4 + 5) / lengths)) and one.se > 0
    assert one.flips == (0, 1, 3)
    assert not pair_tasks(first, first, tasks)["reasoning"]["words"].per_byte


def test_rows_that_one_model_has_no_room_for_are_not_paired():
    tasks = {"speciality": [RESPONSES]}
    short = {"speciality": {"task": score(RESPONSES, "x.")}}
    with pytest.raises(CofituneError, match="Of the 3 rows of the task task 2 fit into the one model and 2 into "):
        pair_tasks(short, short, tasks)
    assert pair_tasks(short, short, tasks, same_rows=True)["speciality"]["task"].flips == (0, 0, 2)
