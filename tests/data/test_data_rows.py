from __future__ import annotations

import bz2
import gzip
import json
import lzma

import pytest

from cofitune_fast.data import read_examples, read_rows
from cofitune_fast.errors import CofituneError

ROWS = [{"a": "one"}, {"a": "two\u2028lines"}, {"a": "é"}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("x.jsonl", LINES, ["1", "2", "3"]),
        ("x.jsonl", "\n" + LINES.replace("\n", "\r\n\n") + "\n\n", ["2", "4", "6"]),
        ("x.jsonl", "\ufeff" + LINES, ["1", "2", "3"]),
        ("x.jsonl", LINES.replace("\n", "\n\ufeff"), ["1", "2", "3"]),
        ("x.json", LINES, ["1", "2", "3"]),
        ("x.json", json.dumps(ROWS, indent=1), ["row 1", "row 2", "row 3"]),
        ("x.jsonl", json.dumps(ROWS), ["row 1", "row 2", "row 3"]),
        ("x.json", json.dumps({"version": 1, "data": ROWS}), ["row 1", "row 2", "row 3"]),
        ("x.json", json.dumps({"train": ROWS}), ["row 1", "row 2", "row 3"]),
        ("x.jsonl", json.dumps({"data": ROWS}, indent=1), ["row 1", "row 2", "row 3"]),
        ("x.jsonl", LINES.replace("\n", "\r"), ["1", "2", "3"]),
        ("x.jsonl", LINES.replace("\n", ",\n") + ",\n", ["row 1", "row 2", "row 3"]),
        ("x.jsonl", LINES.replace("\n", ""), ["row 1", "row 2", "row 3"]),
        ("x.jsonl", "\n".join(json.dumps(row, indent=1) for row in ROWS), ["row 1", "row 2", "row 3"]),
        ("x.json", "\r\n".join(json.dumps(row, indent=1) for row in ROWS), ["row 1", "row 2", "row 3"]),
        ("x.csv", "a\none\ntwo\u2028lines\né\n", ["2", "3", "4"]),
        ("x.tsv", "a\none\n\ntwo\u2028lines\né\n", ["2", "4", "5"]),
        ("x.csv", "\ufeffa,\none,\n,\ntwo\u2028lines,\né\n", ["2", "4", "5"]),
        ("x.csv", ",a\n0,one\n1,two\u2028lines\n2,é\n", ["2", "3", "4"]),
        ("x.csv", "sep=;\n a ;\none;\ntwo\u2028lines;\né;\n", ["3", "4", "5"]),
    ],
)
def test_rows_and_places(tmp_path, name, text, places):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    rows = read_rows(path)
    assert [row.fields for row in rows] == ROWS
    assert [row.where for row in rows] == [f"{path}:{place}" for place in places]
    assert read_rows(path, limit=2) == rows[:2]


TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
@pytest.mark.parametrize(("lines", "rows"), [([TALK], 1), ([TALK, TALK], 2), ([[TALK, TALK]], 2)])
def test_a_list_of_messages_is_a_row(tmp_path, name, lines, rows):
    path = tmp_path / name
    path.write_text("\n".join(map(json.dumps, lines)))
    assert [row.fields for row in read_rows(path)] == [{"messages": TALK}] * rows


def test_rows_that_are_not_one_a_line_are_told(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "hi", "completion": "yo"}, indent=1) for _ in range(3)))
    assert read_examples(path).faults.changed == {
        "another layout than one object a line": [f"{path}:row {number}" for number in (1, 2, 3)]}


def test_quotation_marks_in_a_tsv_file(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text('prompt\tcompletion\nsay "a"\tb\n"Hello" she said\tyo\n"hi\tyo"\n')
    examples = read_examples(path)
    assert [(row.prompt[0]["content"], row.response) for row in examples] == [
        ('say "a"', "b"), ('"Hello" she said', "yo"), ('"hi', 'yo"')]
    assert examples.faults.changed == {
        "quotation marks at the beginning of a cell as text": [f"{path}:3", f"{path}:4"]}
    path.write_text('prompt\tcompletion\n"hi"\t"a ""b""\tc"\n')
    assert [row.fields for row in read_rows(path)] == [{"prompt": "hi", "completion": 'a "b"\tc'}]
    path.write_text('prompt\tcompletion\n"hi\tyo\nlonely\n')
    with pytest.raises(CofituneError, match=r"x\.tsv:2 is broken CSV"):
        read_rows(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_encodings_with_a_mark_and_compression(tmp_path, encoding, pack):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(pack(LINES.encode(encoding)))
    assert [row.fields for row in read_rows(path)] == ROWS


def test_a_csv_file_goes_on_after_a_broken_record(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('a;b\n1;2\n"open;3\n4;5\nsix\n7;"8"x\n"nine\nlines";' + "x" * 200_000 + "\n")
    rows = read_rows(path, on_bad_row="skip")
    assert [row.fields for row in rows] == [
        {"a": "1", "b": "2"}, {"a": "4", "b": "5"}, {"a": "nine\nlines", "b": "x" * 200_000}]
    assert [row.where for row in rows] == [f"{path}:{line}" for line in (2, 4, 7)]
    with pytest.raises(CofituneError, match=r"2 with broken CSV \(\S+csv:3, \S+csv:6\); 1 with another number of"):
        read_rows(path)


def test_bytes_of_another_encoding_are_a_fault_of_their_rows(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": "one"}\n{"a": "caf\xe9"}\n' + '{"a": "é"}\n'.encode())
    assert [row.fields["a"] for row in read_rows(path, on_bad_row="skip")] == ["one", "é"]


def test_the_files_of_a_folder_s_split(tmp_path):
    for name, text in {"train-00000-of-00002.jsonl": "one", "train-00001-of-00002.jsonl": "two", "test.jsonl": "no",
                       "._train.jsonl": "\0", "dataset_infos.json": "", ".DS_Store": "\0", "readme.md": ""}.items():
        (tmp_path / name).write_text(json.dumps({"a": text}))
    assert [row.fields["a"] for row in read_rows(f"{tmp_path}:train")] == ["one", "two"]
    assert [row.fields["a"] for row in read_rows(f"{tmp_path}:train", limit=1)] == ["one"]
    with pytest.raises(CofituneError, match="is a folder; name one data file in it, or add one of its splits"):
        read_rows(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    assert len(read_rows(tmp_path)) == 2


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
        ("x.jsonl", b'{\n"a": 1\n}\n{\n"a": [\n{"b": 1}\n}', r"x\.jsonl:7 is broken .* that has not one row on each"),
        ("x.jsonl", b'{"a": 1},\n{"a": },\n', r"x\.jsonl:2 is broken JSON .* without a comma after it"),
        ("x.json", b'{"train": [{"a": 1}], "test": [{"a": 1}, {"a": 2}]}', r"several lists of rows \(train, test\)"),
        ("x.json", b'{"a": ["x", "y"], "b": ["u", "v"]}', r'by its columns .*orient="records", lines=True'),
        ("x.json", b'{"a": {"0": "x"}, "b": {"0": "u"}}', "by its columns or its index, as pandas"),
        ("x.jsonl", b'{"0": {"a": "x"}, "1": {"a": "u"}}', "by its columns or its index, as pandas"),
        ("x.json", b'{"columns": ["a"], "index": [0], "data": [["x"]]}', "by its columns or its index, as pandas"),
        ("x.jsonl", b'{"a": 1}\n{"a": \n', r"x\.jsonl:2 is broken JSON"),
        ("x.jsonl", b"{broken\n", r"x\.jsonl:1 is broken JSON"),
        ("x.json", b'[{"a": 1},\n{"a": }]', r"x\.json:2 is broken JSON"),
        ("x.json", b'{"a": 1}\n{"a": \n', r"x\.json:2 is broken JSON"),
        ("x.jsonl", b"[" * 100_000, r"x\.jsonl:1 is broken JSON"),
        ("x.jsonl", b'{"a": 1}\n"text"', r"x\.jsonl:2 holds a text; each row must be a JSON object"),
        ("x.json", b'[{"a": 1}, 3]', r"x\.json:row 2 holds a number; each row must be a JSON object"),
        ("x.json", b"3", r"x\.json holds a single JSON value"),
        ("x.jsonl", b'{"a": 1}\n{"a": "\xff"}', r"x\.jsonl:2 is not valid UTF-8"),
        ("x.csv", b"a,b\n1,2\n1\n", r"x\.csv:3 has 1 columns where the header has 2"),
        ("x.csv", b'a,b\n1,2\n1,"open\n', r"x\.csv:3 is broken CSV"),
        ("x.jsonl", b'{"a": "na\xefve"}\n', r"x\.jsonl:1 .*byte 0xef, which would be 'ï' in Windows-1252.*iconv"),
        ("x.json", b'[{"a": 1},\n{"a": "\xff"}]', r"x\.json:2 is not valid UTF-8"),
        ("x.csv", b"a,b\n1,\xe9\n", r"x\.csv:2 is not valid UTF-8"),
        ("x.jsonl", '{"a": 1}'.encode("utf-16-le"), r"x\.jsonl is not text in UTF-8: it holds NUL bytes, as UTF-16"),
        ("x.jsonl", b'{"a": 1, "a": 2}', r"x\.jsonl:1 has the key 'a' twice"),
        ("x.json", b'[{"a": [{"b": 1, "b": 2}]}]', r"x\.json:row 1 has the key 'b' twice"),
        ("x.csv", b"a,b,a\n1,2,3\n", r"x\.csv:1 has the column 'a' twice"),
        ("x.csv", b"a,b\n1,2,3\n", r"x\.csv:2 has 3 columns where the header has 2"),
        ("x.csv", b"a,\n1,2\n", r"x\.csv:2 has a cell in column 2, which has no name"),
        ("x.jsonl.gz", b"\x1f\x8b\x08\x00", r"x\.jsonl\.gz cannot be unpacked"),
        ("x.jsonl.zst", b"\x28\xb5\x2f\xfd", r"unpack it first \(zstd -d\)"),
        ("x.parquet", b"PAR1", r"x\.parquet cannot be read"),
        ("x.xlsx", b"PK", r"x\.xlsx is not a data file known here; the known endings are \.jsonl"),
        ("._x.jsonl", b"\0\5\x16\7", r"\._x\.jsonl is a file that the operating system keeps"),
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
    with pytest.raises(CofituneError, match="is a folder without data files"):
        read_rows(tmp_path)
    with pytest.raises(CofituneError, match=r"limit for x\.jsonl is 0; it must be at least 1"):
        read_rows("x.jsonl", limit=0)
