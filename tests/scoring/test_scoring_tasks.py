from __future__ import annotations

import csv
import json

import pytest
from tiny import CHATML

from cofitune_fast.data import Example
from cofitune_fast.errors import CofituneError
from cofitune_fast.scoring import ChoiceItem, ContinuationItem, Task, read_task, without_refused
from cofitune_fast.scoring.tasks import join

CHOICE = {"query": "q", "choices": ["a", "b"], "gold": 1}


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_fields_tell_the_kind(tmp_path):
    path = write(tmp_path / "c.jsonl", CHOICE, CHOICE)
    task = read_task(path)
    assert (task.name, task.kind, task.primary) == ("c", "choice", "accuracy")
    assert list(task.items) == [ChoiceItem("q", ("a", "b"), 1, f"{path}:{line}") for line in (1, 2)]
    path = write(tmp_path / "w.jsonl", *[{"context": "x", "continuation": "y"}] * 3)
    task = read_task(path, limit=2, name="words", metric="exact")
    assert (task.name, task.kind, task.primary) == ("words", "continuation", "exact")
    assert list(task.items) == [ContinuationItem("x", "y", f"{path}:{line}") for line in (1, 2)]
    path = write(tmp_path / "mine" / "test.jsonl", *[{"prompt": "x", "completion": "y"}] * 2)
    task = read_task(path)
    assert (task.name, task.kind, task.primary) == ("mine-test", "response", "likelihood")
    assert task.items[1] == Example([{"role": "user", "content": "x"}], "y", f"{path}:2")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**CHOICE, "gold": 2}, "has 2 as 'gold'; it must be a whole number from 0 to 1"),
        ({**CHOICE, "gold": -1}, "has -1 as 'gold'"),
        ({**CHOICE, "gold": True}, "has True as 'gold'"),
        ({**CHOICE, "gold": "B"}, "has 'B' as 'gold'"),
        ({**CHOICE, "gold": 0.5}, "has 0.5 as 'gold'"),
        ({"query": "q", "choices": ["a", "b"]}, "has None as 'gold'"),
        ({**CHOICE, "choices": ["a"]}, "needs a list of at least 2 texts as 'choices'"),
        ({**CHOICE, "choices": "ab"}, "needs a list of at least 2 texts as 'choices'"),
        ({**CHOICE, "choices": ["a", ""]}, "a choice that is empty or not text"),
        ({**CHOICE, "choices": ["a", True]}, "a choice that is empty or not text"),
        ({**CHOICE, "chat": "yes"}, "has 'yes' as 'chat'; it must be true or false"),
        ({**CHOICE, "query": " "}, "needs a text that is not empty as 'query'"),
        ({"context": "x", "continuation": ""}, "needs a text that is not empty as 'continuation'"),
        ({"context": None, "continuation": "y"}, "needs a text that is not empty as 'context'"),
        ({"question": "x"}, "has the fields 'question', which is none of the known forms"),
        ({"prompt": "p", "instruction_id_list": []}, r"answers must be generated \(IFEval\)"),
    ],
)
def test_bad_rows_are_told(tmp_path, row, words):
    with pytest.raises(CofituneError, match=words) as caught:
        read_task(write(tmp_path / "t.jsonl", row, row))
    caught.match(r"t\.jsonl")


def test_a_row_may_ask_for_the_chat_template(tmp_path):
    task = read_task(write(tmp_path / "t.jsonl", CHOICE, {**CHOICE, "chat": True}))
    assert [item.chat for item in task.items] == [False, True]
    task = read_task(write(tmp_path / "t.jsonl", *[{"context": "x", "continuation": "y", "chat": True}] * 2))
    assert [item.chat for item in task.items] == [True, True]


def test_a_later_row_of_another_form_is_told(tmp_path):
    path = write(tmp_path / "t.jsonl", CHOICE, {"context": "x", "continuation": "y"})
    with pytest.raises(CofituneError, match=r"t\.jsonl:2 has the fields of a continuation task, and most rows"):
        read_task(path)


def test_a_csv_suite_holds_lists_numbers_and_truth_values_as_text(tmp_path):
    path = tmp_path / "c.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["query", "choices", "gold", "chat"], ["q", '["a", "b"]', "1", "true"],
                                    ["q", "['a', 'b']", " 0", "False"], ["q", "[1, 2.5]", "1.0", ""]])
    assert list(read_task(path).items) == [
        ChoiceItem("q", ("a", "b"), 1, f"{path}:2", True), ChoiceItem("q", ("a", "b"), 0, f"{path}:3"),
        ChoiceItem("q", ("1", "2.5"), 1, f"{path}:4")]


def test_bad_items_are_counted_or_left_out_with_a_note(tmp_path):
    bad = {**CHOICE, "gold": 7}
    path = write(tmp_path / "t.jsonl", bad, {"context": "x", "continuation": "y"}, CHOICE, bad, CHOICE)
    with pytest.raises(CofituneError, match=r"3 of 5 rows cannot be used: 2 with a gold that is no choice \("):
        read_task(path)
    task = read_task(path, on_bad_row="skip")
    assert [item.where for item in task.items] == [f"{path}:3", f"{path}:5"]
    assert task.notes[0].startswith("Left out 3 rows that cannot be used: 2 with a gold that is no choice")


def test_a_task_of_too_few_good_rows_says_why(tmp_path):
    path = write(tmp_path / "t.jsonl", CHOICE, {**CHOICE, "gold": 7})
    with pytest.raises(CofituneError, match=r"has 1 item\(s\); .* at least 2\. Left out 1 row that cannot be used"):
        read_task(path, on_bad_row="skip")


def test_bad_tasks_are_told():
    items = [ContinuationItem("x", "y")] * 2
    with pytest.raises(CofituneError, match="unknown kind 'essay'; use 'choice' or 'continuation' or 'response'"):
        Task("t", "essay", items)
    with pytest.raises(CofituneError, match="asks for the metric 'accuracy'; a continuation task has 'likelihood' or"):
        Task("t", "continuation", items, metric="accuracy")
    with pytest.raises(
        CofituneError, match=r"The task t has 1 item\(s\); a score with a standard error needs at least 2"
    ):
        Task("t", "continuation", items[:1])


@pytest.mark.parametrize(("query", "answer", "wanted"), [
    ("Q:", "yes", ("Q:", " yes")), ("Q: ", "yes", ("Q:", " yes")), ("Q:", " yes", ("Q:", " yes")),
    ("Q:  ", "  yes ", ("Q:", " yes")), ("It is ", ", no", ("It is", " , no")),
    ("Q:\n", "yes", ("Q:\n", "yes")), ("Q:\t", "yes", ("Q:\t", "yes")), ("Q:\u00a0", "yes", ("Q:\u00a0", "yes")),
    ("def f():\n", "    pass", ("def f():\n", "    pass")), ("Q:\n ", "yes", ("Q:\n", " yes")),
    ("Q:", "\nyes", ("Q:", "\nyes")), ("Q: ", "\u00a0yes", ("Q:", "\u00a0yes")), ("Q:", "yes\n", ("Q:", " yes\n")),
])
def test_a_query_and_its_answer_are_joined_once(query, answer, wanted):
    text, answers = join(query, [answer, "x"])
    assert (text, answers[0]) == wanted


def test_responses_that_the_chat_template_refuses_are_left_out_with_a_note(tiny_tokenizer):
    tiny_tokenizer.chat_template = CHATML.replace("{% for message in messages %}",
                                                  "{% for message in messages if message.role != 'system' %}")
    system = [{"role": "system", "content": "Be brief."}]
    user = [{"role": "user", "content": "hi"}]
    task = Task("t", "response", [Example(user, "a", "f:1"), Example(system + user, "b", "f:2"), Example(user, "c")])
    left = without_refused(task, tiny_tokenizer)
    assert [item.response for item in left.items] == ["a", "c"]
    (note,) = left.notes
    assert "f:2" in note and "1 row that cannot be used" in note
