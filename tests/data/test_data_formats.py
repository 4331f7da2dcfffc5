from __future__ import annotations

import csv
import json

import pytest

from cofitune_fast.data import Example, read_examples
from cofitune_fast.errors import CofituneError


def write(folder, *rows):
    path = folder / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def turn(role, content):
    return {"role": role, "content": content}


HI, YO = turn("user", "hi"), turn("assistant", "yo")
MESSAGES = [turn("system", "be brief"), HI, YO, turn("user", "more"), turn("assistant", "no")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": MESSAGES}, [(MESSAGES[:2], "yo"), (MESSAGES[:4], "no")]),
        ({"messages": [HI, YO, HI]}, [([HI], "yo")]),
        (
            {
                "system": "be brief",
                "conversations": [
                    {"from": "human", "value": "hi"},
                    {"from": "gpt", "value": "yo"},
                    {"from": "user", "value": "more"},
                    {"from": "assistant", "value": "no"},
                ],
            },
            [(MESSAGES[:2], "yo"), (MESSAGES[:4], "no")],
        ),
        ({"prompt": "hi", "completion": "yo"}, [([HI], "yo")]),
        ({"prompt": [HI], "completion": [YO]}, [([HI], "yo")]),
        ({"prompt": MESSAGES[:4], "completion": "no"}, [(MESSAGES[:4], "no")]),
        ({"instruction": "hi", "output": "yo"}, [([HI], "yo")]),
        ({"instruction": "hi", "input": None, "output": "yo", "system": ""}, [([HI], "yo")]),
        ({"instruction": "hi", "input": "x = 1", "output": " yo\n"}, [([turn("user", "hi\nx = 1")], " yo\n")]),
        (
            {"instruction": "more", "input": "", "output": "no", "system": "be brief", "history": [["hi", "yo"]]},
            [(MESSAGES[:4], "no")],
        ),
    ],
)
def test_each_form(tmp_path, row, expected):
    path = write(tmp_path, row)
    assert read_examples(path) == [Example(prompt, response, f"{path}:1") for prompt, response in expected]


def test_references_and_limit(tmp_path):
    path = write(
        tmp_path, {"prompt": "hi", "completion": "yo", "references": ["yo", "hey"]}, {"prompt": "a", "completion": "b"}
    )
    first, second = read_examples(path)
    assert first.references == ("yo", "hey")
    assert second == Example([turn("user", "a")], "b", f"{path}:2")
    assert read_examples(path, limit=1) == [first]


def test_csv_holds_lists_as_json(tmp_path):
    path = tmp_path / "x.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [["prompt", "completion", "references"], ["hi", "yo", '["yo", "hey"]'], ["hi", "yo", ""]]
        )
    assert [example.references for example in read_examples(path)] == [("yo", "hey"), ()]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [json.dumps(MESSAGES)]])
    assert [example.response for example in read_examples(path)] == ["yo", "no"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "hi"}, r"x\.jsonl:1 has the fields 'question', which is none .*Alpaca \(instruction, output\)"),
        ({"messages": [YO, HI, YO]}, "begins with an assistant turn"),
        ({"prompt": [], "completion": "yo"}, "needs a list with at least one entry as 'prompt'"),
        ({"messages": [HI]}, "has no assistant turn"),
        ({"prompt": "hi", "completion": [HI]}, "has no assistant turn"),
        ({"messages": [HI, turn("assistant", " ")]}, "has an empty assistant turn"),
        ({"messages": "hi"}, "has text as 'messages'; it must be a list"),
        ({"messages": [HI, "yo"]}, "'messages', turn 2, something else than an object with 'role' and 'content'"),
        ({"messages": [{"role": "user"}]}, "turn 1, something else than an object with 'role' and 'content'"),
        ({"messages": [HI, turn("robot", "yo")]}, "turn 2, the unknown role 'robot'; the known ones are system"),
        ({"messages": [HI, turn(["assistant"], "yo")]}, "turn 2, the unknown role"),
        ({"messages": [HI, turn("assistant", None)]}, "turn 2, a NoneType as 'content'; it must be text"),
        ({"conversations": [{"from": "robot", "value": "yo"}]}, "turn 1, the unknown role 'robot'"),
        ({"conversations": [{"from": "gpt", "value": "hi"}]}, "begins with an assistant turn"),
        ({"prompt": "hi", "completion": ""}, "has an empty 'completion'"),
        ({"prompt": " ", "completion": "yo"}, "has an empty 'prompt'"),
        ({"prompt": "hi", "completion": 4}, "has a int as 'completion'; it must be text"),
        ({"prompt": "hi", "completion": "yo", "references": [1]}, "a reference that is not text"),
        ({"prompt": "hi", "completion": "yo", "references": 1}, "needs a list with at least one entry as 'references'"),
        ({"instruction": "hi", "output": "\n"}, "has an empty 'output'"),
        ({"instruction": None, "output": "yo"}, "has a NoneType as 'instruction'"),
        ({"instruction": "hi", "input": 3, "output": "yo"}, "has a int as 'input'"),
        ({"instruction": "hi", "output": "yo", "history": [["a"]]}, "'history' that is not a list of"),
    ],
)  # fmt: skip
def test_bad_rows_are_told_with_their_line(tmp_path, row, words):
    with pytest.raises(CofituneError, match=r"x\.jsonl:1 .*" if not words.startswith("x") else words) as caught:
        read_examples(write(tmp_path, row))
    caught.match(words)


def test_the_first_row_s_form_is_required_of_all(tmp_path):
    path = write(tmp_path, {"prompt": "hi", "completion": "yo"}, {"instruction": "hi", "output": "yo"})
    with pytest.raises(
        CofituneError, match=r"x\.jsonl:2 lacks the field 'prompt', 'completion' of the prompt/completion"
    ):
        read_examples(path)
