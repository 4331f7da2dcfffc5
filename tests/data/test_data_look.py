"""What a look at a file says: the formats of its rows, and which rows repeat another one."""

from __future__ import annotations

import json

from cofitune_fast.data.look import read_file, repeated, shared


def talk(*words):
    return {"messages": [{"role": role, "content": word} for role, word in
                         zip(("user", "assistant") * len(words), words, strict=False)]}


def look(folder, *rows):
    path = folder / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_file(path)


def test_rows_of_several_responses_count_once(tmp_path):
    train = look(tmp_path, *[talk("a", "b", "c", "d")] * 3, talk("a", "b", "x", "y"), talk("u", "v"), talk("a", "z"))
    place = [text.where for text in train.texts]
    first, second, third, fourth, last = place[0], place[2], place[4], place[6], place[9]
    assert repeated(train.texts).exact == [(second, first), (third, first)]
    assert repeated(train.texts).prompt == [(where, first) for where in (second, third, fourth, last)]
    new = [text._replace(where=f"test:{number}") for number, row in enumerate(
        (talk("a", "b", "c", "d"), talk("a", "q"), talk("n", "m"))) for text in look(tmp_path, row).texts]
    assert shared(new, train.texts).exact == [("test:0", first)]
    assert shared(new, train.texts).prompt == [("test:0", first), ("test:1", first)]


def test_all_formats_of_a_file_are_told(tmp_path):
    alpaca, pair = {"instruction": "a", "output": "b"}, {"question": "a", "answer": "b"}
    mixed = look(tmp_path, pair, talk("a", "b"), *[alpaca] * 3, {"question": "bad"}, pair)
    assert mixed.form == "Alpaca 3, question/answer 2, messages 1"
    assert mixed.to_dict()["formats"] == {"question/answer": 2, "messages": 1, "Alpaca": 3}
    assert look(tmp_path, alpaca, alpaca).form == "Alpaca"
    assert look(tmp_path, {"bad": 1}).form == "unknown"


def test_a_change_in_several_turns_of_a_row_counts_once(tmp_path):
    row = talk("a", "b", "c", "d")
    for turn in row["messages"]:
        turn["mood"] = "good"
    assert [len(places) for places in look(tmp_path, row, row).faults.changed.values()] == [2]
