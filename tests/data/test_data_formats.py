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


@pytest.mark.parametrize(
    ("row", "prompt", "response"),
    [
        ({"instruction": "hi", "context": "x", "response": "yo"}, "hi\nx", "yo"),
        ({"instruction": "hi", "input": 3, "output": 5}, "hi\n3", "5"),
        ({"instruction": "hi", "input": float("nan"), "output": 0.5}, "hi", "0.5"),
        ({"Instruction": "hi", " Output ": "yo"}, "hi", "yo"),
        ({"question": "hi", "answer": "yo", "id": 3, "context": None}, "hi", "yo"),
        ({"problem": "hi", "solution": "long", "answer": "yo"}, "hi", "long"),
        ({"question": "hi", "answer": "yo", "solution": "long"}, "hi", "long"),
        ({"query": "hi", "response": "yo"}, "hi", "yo"),
        ({"instruction": "hi", "input": "x", "output": "yo", "text": "# hi\n# x\n# yo", "thinking": "off"},
         "hi\nx", "yo"),
        ({"instruction": "hi", "answer": "yo"}, "hi", "yo"),
        ({"instruction": "hi", "input": "x", "completion": "yo"}, "hi\nx", "yo"),
        ({"instruction": " ", "input": "hi", "output": "yo"}, "hi", "yo"),
        ({"prompt": '[{"role": "user" is JSON', "completion": "yo"}, '[{"role": "user" is JSON', "yo"),
        ({"messages": [], "prompt": "hi", "completion": "yo"}, "hi", "yo"),
        ({"input": "hi", "output": "yo"}, "hi", "yo"),
        ({"source": "hi", "target": "yo"}, "hi", "yo"),
        ({"prompt": '[{"role": "user", "content": "hi"}]', "completion": "yo"}, "hi", "yo"),
        ({"prompt": "hi", "completion": "é \U0001f600"}, "hi", "é \U0001f600"),
    ],
)
def test_pairs_and_values_that_are_plain(tmp_path, row, prompt, response):
    (example,) = read_examples(write(tmp_path, row))
    assert (example.prompt, example.answer) == ([turn("user", prompt)], turn("assistant", response))


QUESTION = {"question": "hi x", "answer": "yo"}


@pytest.mark.parametrize(
    ("row", "name"),
    [
        *(({**QUESTION, name: "long"}, name) for name in (
            "paragraph", "table", "text", "knowledge", "evidence", "hint", "background", "story", "schema", "Context",
            "sql_context", "input_text", "system_instruction")),
        ({**QUESTION, "contexts": ["x", "long"]}, "contexts"),
        ({**QUESTION, "A": "x", "B": "y", "C": 3}, "B"),
        ({**QUESTION, "choices": [1, 2]}, "choices"),
        ({"prompt": "hi", "input": "long", "completion": "yo"}, "input"),
        ({"instruction": "hi", "choices": ["a", "b"], "output": "yo"}, "choices"),
        ({"instruction": "hi", "question": "long", "answer": "yo"}, "question"),
        ({"input": "hi", "prompt": "long", "output": "yo"}, "prompt"),
        ({"instruction": "hi", "input": "x", "Input": "y", "output": "yo"}, "Input"),
    ],
)  # fmt: skip
def test_a_field_that_belongs_to_the_prompt_is_a_fault(tmp_path, row, name):
    with pytest.raises(CofituneError, match=rf"has '{name}' beside '\w+' and '\w+', and it is not plain where"):
        read_examples(write(tmp_path, row))


@pytest.mark.parametrize(
    ("more", "left_out"),
    [
        ({"id": "a", "url": "b", "doc_id": "c", "metadata": {"a": "b"}, "n": 3, "ok": True, "vector": [0.1, 2],
          "none": None, "blank": " "}, []),
        ({"text": "### Question\nhi x\n### Answer\nyo"}, ["text"]),  # the row as one text
        ({"context": "x", "choices": ["hi", "x"]}, ["choices", "context"]),  # they stand in the prompt
        ({"A": "alone", "Title": "T", "solved": "3"}, ["A", "Title", "solved"]),
    ],
)
def test_other_fields_are_left_out_and_told(tmp_path, more, left_out):
    path = write(tmp_path, {**QUESTION, **more})
    examples = read_examples(path)
    assert [(row.prompt, row.response) for row in examples] == [([turn("user", "hi x")], "yo")]
    assert examples.faults.changed == {f"the field {name!r} left out": [f"{path}:1"] for name in left_out}


def test_numbers_in_a_table_say_nothing(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("prompt,completion,rated,seen\nhi,yo,3.5,True\nhi,yo,much,\n")
    assert read_examples(path).faults.changed == {"the field 'rated' left out": [f"{path}:3"]}
    path.write_text('prompt,completion\n"[{""role"": 1",yo\n')
    with pytest.raises(CofituneError, match="has text as 'prompt'; it must be a list"):
        read_examples(path)


def test_a_thought_and_references_beside_turns_need_one_response(tmp_path):
    beside = {"reasoning": "hm", "references": ["yo", "hey"]}
    (example,) = read_examples(write(tmp_path, {"messages": [HI, YO], **beside}))
    assert example.answer == {**YO, "reasoning_content": "hm"} and example.references == ("yo", "hey")
    weighted = [HI, {**YO, "weight": 0}, HI, YO]
    (example,) = read_examples(write(tmp_path, {"messages": weighted, **beside}))
    assert example.answer == {**YO, "reasoning_content": "hm"} and example.prompt == [HI, YO, HI]


def test_a_thought_system_and_history_beside_a_pair(tmp_path):
    (example,) = read_examples(write(tmp_path, {
        "system_prompt": "be brief", "query": "more", "response": "no", "history": [["hi", "yo"]], "reasoning": "hm",
    }))
    assert example.prompt == MESSAGES[:4]
    assert example.answer == {**turn("assistant", "no"), "reasoning_content": "hm"}


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
        ({"prompt": [], "completion": "yo"}, "needs a list with at least one entry as 'prompt'"),
        ({"messages": [HI]}, "has no assistant turn"),
        ({"prompt": "hi", "completion": [HI]}, "has no assistant turn"),
        ({"messages": [HI, turn("assistant", " ")]}, "has an empty assistant turn"),
        ({"messages": "hi"}, "has text as 'messages'; it must be a list"),
        ({"messages": [HI, "yo"]}, "'messages', turn 2, something else than an object with 'role' and 'content'"),
        ({"messages": [{"role": "user"}]}, "turn 1, something else than an object with 'role' and 'content'"),
        ({"messages": [HI, turn("robot", "yo")]}, "turn 2, the unknown role 'robot'; the known ones are system"),
        ({"messages": [HI, turn(["assistant"], "yo")]}, "turn 2, the unknown role"),
        ({"messages": [HI, turn("assistant", None)]}, "turn 2, null as 'content'; it must be text"),
        ({"conversations": [{"from": "robot", "value": "yo"}]}, "turn 1, the unknown role 'robot'"),
        ({"conversations": [{"from": "gpt", "value": "hi"}]}, "has no assistant turn after another turn"),
        ({"prompt": "hi", "completion": ""}, "has an empty 'completion'"),
        ({"prompt": " ", "completion": "yo"}, "has an empty 'prompt'"),
        ({"prompt": "hi", "completion": True}, "has a truth value as 'completion'; it must be text"),
        ({"prompt": "hi", "completion": float("inf")}, "has a number as 'completion'; it must be text"),
        ({"prompt": "hi", "completion": None}, "has an empty 'completion'"),
        ({"prompt": "hi", "completion": float("nan")}, "has an empty 'completion'"),
        ({"prompt": "hi", "completion": "cut \ud83d"}, r"has in 'completion' half of a character, \\ud83d, as a cut"),
        ({"prompt": "hi", "completion": "a\0b"}, "has in 'completion' a NUL character"),
        ({"prompt": "hi", "chosen": "yo", "rejected": "no"}, "take 'chosen' as the completion"),
        ({"messages": [HI, YO], "rejected_response": "no"}, "has preferences"),
        ({"prompt": "hi", "completion": "yo", "label": True}, "as for KTO"),
        ({"prompt": "hi", "completion": "yo", "images": ["a.png"]}, "has 'images'; only text is trained"),
        ({"prompt": "hi", "completion": "yo", "weight": 0.5}, "has 0.5 as 'weight'"),
        ({"prompt": "hi", "completion": "\u200b \u3000"}, "has an empty 'completion'"),
        ({"messages": MESSAGES, "reasoning": "hm"}, "has a thought beside its turns, and it is not plain which one"),
        ({"messages": [HI, YO, HI], "reasoning": "hm"}, "has a thought beside its turns"),
        ({"prompt": "hi", "completion": {**YO, "thinking": "a"}, "reasoning": "b"}, "has two different thoughts"),
        ({"messages": MESSAGES, "references": ["a"]}, "has 'references' beside 2 responses"),
        ({"messages": [HI, YO], "history": [["a", "b"]]}, "has 'history' beside 'messages'"),
        ({"query": "hi", "response": "yo", "system": "a", "system_prompt": "b"}, "has two system prompts that differ"),
        ({"messages": MESSAGES, "system": "be long"}, "has a system prompt beside 'messages' and another one"),
        ({"messages": [HI, YO], "tools": [{"name": "\ud83d"}]}, "has in 'tools' half of a character"),
        ({"text": "a story"}, "has 'text' alone, as for pre-training"),
        ({"question": "hi", "answer": "yo", "context": "long"}, "has 'context' beside 'question' and 'answer'"),
        ({"messages": [HI, YO], "tools": "no list"}, "has a text as 'tools'"),
        ({"prompt": "hi", "completion": "yo", "references": [True]}, "a reference that is not text"),
        ({"prompt": "hi", "completion": "yo", "references": 1}, "needs a list with at least one entry as 'references'"),
        ({"instruction": "hi", "output": "\n"}, "has an empty 'output'"),
        ({"instruction": None, "output": "yo"}, "has an empty 'instruction'"),
        ({"instruction": "hi", "input": {"x": 3}, "output": "yo"}, "has an object as 'input'"),
        ({"instruction": "hi", "output": "yo", "history": [["a"]]}, "'history' that is not a list of"),
    ],
)  # fmt: skip
def test_bad_rows_are_told_with_their_line(tmp_path, row, words):
    with pytest.raises(CofituneError, match=r"x\.jsonl:1 .*" if not words.startswith("x") else words) as caught:
        read_examples(write(tmp_path, row))
    caught.match(words)


def test_each_row_has_its_own_form(tmp_path):
    path = write(tmp_path, {"prompt": "hi", "completion": "yo"}, {"instruction": "hi", "output": "yo"},
                 {"messages": None, "question": "hi", "answer": "yo"})
    assert [(row.prompt, row.response) for row in read_examples(path)] == [([HI], "yo")] * 3


BAD = [
    {"prompt": "hi", "completion": "yo"}, {"prompt": "hi", "completion": ""}, {"question": "hi"},
    {"prompt": "hi", "completion": None}, {"prompt": "hi", "completion": "yo"}, {"prompt": "hi", "completion": " "},
    {"prompt": "hi", "completion": ""},
]


def test_all_bad_rows_are_counted_by_kind_before_the_end(tmp_path):
    path = write(tmp_path, *BAD)
    path.write_text(path.read_text() + "broken\n")
    with pytest.raises(CofituneError) as caught:
        read_examples(path)
    assert str(caught.value).startswith(
        f"6 of 8 rows cannot be used: 4 with an empty 'completion' ({path}:2, {path}:4, {path}:6 ...); "
        f"1 with fields of no known form ({path}:3); 1 with broken JSON ({path}:8). The first: {path}:2 has an empty"
    )


def test_bad_rows_are_left_out_when_asked_for(tmp_path, caplog):
    path = write(tmp_path, *BAD)
    examples = read_examples(path, on_bad_row="skip")
    assert [example.where for example in examples] == [f"{path}:1", f"{path}:5"]
    assert examples.rows == 7
    assert {kind: len(places) for kind, places in examples.faults.by_kind().items()} == {
        "an empty 'completion'": 4, "fields of no known form": 1}
    assert [record.message[:41] for record in caplog.records] == ["Left out 5 rows that cannot be used: 4 wi"]
    assert len(read_examples(path, limit=5, on_bad_row="skip")) == 2
    with pytest.raises(CofituneError, match=r"4 of 4 rows cannot be used: .*; fill it or remove the row\.$"):
        read_examples(write(tmp_path, *[BAD[1]] * 4), on_bad_row="skip")
