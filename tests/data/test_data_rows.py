from __future__ import annotations

import json

import pytest

from cofitune_fast.data import read_rows
from cofitune_fast.errors import CofituneError

ROWS = [{"a": "one"}, {"a": "two\u2028lines"}, {"a": "é"}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("x.jsonl", LINES, ["1", "2", "3"]),
        ("x.jsonl", "\n" + LINES.replace("\n", "\r\n\n") + "\n\n", ["2", "4", "6"]),
        ("x.jsonl", "\ufeff" + LINES, ["1", "2", "3"]),
        ("x.json", LINES, ["1", "2", "3"]),
        ("x.json", json.dumps(ROWS, indent=1), ["row 1", "row 2", "row 3"]),
        ("x.jsonl", json.dumps(ROWS), ["row 1", "row 2", "row 3"]),
        ("x.json", json.dumps({"version": 1, "data": ROWS}), ["row 1", "row 2", "row 3"]),
        ("x.csv", "a\none\ntwo\u2028lines\né\n", ["2", "3", "4"]),
        ("x.tsv", "a\none\n\ntwo\u2028lines\né\n", ["2", "4", "5"]),
    ],
)
def test_rows_and_places(tmp_path, name, text, places):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    rows = read_rows(path)
    assert [row.fields for row in rows] == ROWS
    assert [row.where for row in rows] == [f"{path}:{place}" for place in places]
    assert read_rows(path, limit=2) == rows[:2]


def test_a_csv_record_of_several_lines_is_placed_at_its_first(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('a,b\n"one\ntwo",x\n"a ""quoted"", comma",y\n')
    assert [(row.fields, row.where) for row in read_rows(path)] == [
        ({"a": "one\ntwo", "b": "x"}, f"{path}:2"),
        ({"a": 'a "quoted", comma', "b": "y"}, f"{path}:4"),
    ]


def test_the_limit_spares_the_rows_after_it(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\nbroken')
    assert [row.fields for row in read_rows(path, limit=1)] == [{"a": 1}]


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("x.jsonl", b"", r"x\.jsonl is empty"),
        ("x.jsonl", b" \n\n", r"x\.jsonl is empty"),
        ("x.json", b"[]", r"x\.json is empty"),
        ("x.json", b'{"data": []}', r"x\.json is empty"),
        ("x.csv", b"a,b\n", r"x\.csv is empty"),
        ("x.jsonl", b'{"a": 1}\n{"a": \n', r"x\.jsonl:2 is broken JSON"),
        ("x.jsonl", b"{broken\n", r"x\.jsonl:1 is broken JSON"),
        ("x.json", b'[{"a": 1},\n{"a": }]', r"x\.json:2 is broken JSON"),
        ("x.json", b'{"a": 1}\n{"a": \n', r"x\.json:2 is broken JSON"),
        ("x.jsonl", b"[" * 100_000, r"x\.jsonl:1 is broken JSON"),
        ("x.jsonl", b'{"a": 1}\n"text"', r"x\.jsonl:2 holds a str; each row must be a JSON object"),
        ("x.json", b'[{"a": 1}, 3]', r"x\.json:row 2 holds a int; each row must be a JSON object"),
        ("x.json", b"3", r"x\.json holds a single JSON value"),
        ("x.jsonl", b'{"a": 1}\n{"a": "\xff"}', r"x\.jsonl:2 is not valid UTF-8"),
        ("x.csv", b"a,b\n1,2\n1\n", r"x\.csv:3 has 1 columns where the header has 2"),
        ("x.csv", b'a,b\n1,2\n1,"open\n', r"x\.csv:3 is broken CSV"),
        ("x.parquet", b"PAR1", r"x\.parquet is not a data file known here; the known endings are \.jsonl"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line(tmp_path, name, raw, words):
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(CofituneError, match=words):
        read_rows(path)


def test_a_missing_file_a_folder_and_a_bad_limit_are_told(tmp_path):
    with pytest.raises(CofituneError, match=r"none\.jsonl does not exist"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(CofituneError, match="is a folder; name one data file"):
        read_rows(tmp_path)
    with pytest.raises(CofituneError, match=r"limit for x\.jsonl is 0; it must be at least 1"):
        read_rows("x.jsonl", limit=0)
