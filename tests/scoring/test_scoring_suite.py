from __future__ import annotations

import json

import pytest

from cofitune_fast.errors import CofituneError
from cofitune_fast.scoring import read_suite

RESPONSES = [{"prompt": "x", "completion": "y"}] * 3


@pytest.fixture
def folder(tmp_path):
    """A suite folder with two reasoning tasks and an IFEval file among the instructions."""
    rows = {
        "speciality/mine": RESPONSES,
        "knowledge/facts": [{"query": "q", "choices": ["a", "b"], "gold": 1}] * 3,
        "reasoning/words": [{"context": "x", "continuation": "y"}] * 3,
        "reasoning/sums": RESPONSES,
        "instruction/alpaca": [{"instruction": "x", "output": "y"}] * 3,
        "instruction/ifeval": [{"prompt": "x", "instruction_id_list": [], "kwargs": []}] * 3,
    }
    for name, entries in rows.items():
        path = tmp_path / "suite" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return tmp_path / "suite"


def names(suite):
    return {group: [task.name for task in tasks] for group, tasks in suite.groups().items()}


ALL = {
    "speciality": ["mine"],
    "knowledge": ["facts"],
    "reasoning": ["sums", "words"],
    "instruction": ["alpaca"],
}


def test_a_folder(folder):
    suite = read_suite(folder)
    assert names(suite) == ALL
    assert len(suite.notes) == 1
    assert "Passed over:" in suite.notes[0]
    assert "ifeval.jsonl" in suite.notes[0]
    assert {len(task.items) for tasks in suite.groups().values() for task in tasks} == {3}
    assert {len(task.items) for tasks in read_suite(folder, limit=2).groups().values() for task in tasks} == {2}


def test_paths_in_the_home_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "other.yaml").write_text("speciality: [~/suite/speciality]\nversatility: ~/suite")
    assert names(read_suite("~/other.yaml")) == ALL


def test_a_folder_with_another_speciality(folder, tmp_path, monkeypatch):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in RESPONSES))
    monkeypatch.chdir(tmp_path)
    assert names(read_suite("suite", speciality="other.jsonl")) == {**ALL, "speciality": ["other"]}
    suite = read_suite("suite", speciality={"path": other, "name": "o", "metric": "exact"})
    assert [(task.name, task.primary) for task in suite.speciality] == [("o", "exact")]


def test_a_yaml_file_relative_to_itself(folder):
    path = folder / "suite.yaml"
    path.write_text(
        "limit: 2\n"
        "speciality: {path: speciality/mine.jsonl, limit: 3}\n"
        "knowledge: {path: knowledge/facts.jsonl, name: f, chat: true, metric: likelihood}\n"
        "reasoning: [reasoning/words.jsonl, {path: reasoning/sums.jsonl}]\n"
        "instruction: instruction\n"
    )
    suite = read_suite(path)
    assert names(suite) == {**ALL, "knowledge": ["f"], "reasoning": ["words", "sums"]}
    assert suite.knowledge[0].chat
    assert suite.knowledge[0].primary == "likelihood"
    assert len(suite.speciality[0].items) == 3
    assert len(suite.knowledge[0].items) == 2


@pytest.mark.parametrize(
    "versatility",
    [".", {group: group for group in ("knowledge", "reasoning", "instruction")}],
    ids=["folder", "mapping"],
)
def test_a_mapping_with_versatility(folder, versatility):
    source = {"speciality": "speciality", "versatility": versatility}
    assert names(read_suite(source, root=folder)) == ALL
    assert source == {"speciality": "speciality", "versatility": versatility}


def test_json_is_read_as_yaml(folder):
    path = folder / "suite.json"
    path.write_text(json.dumps({group: group for group in ALL}))
    assert names(read_suite(path)) == ALL


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reasoning": None}, "The suite has no data for the group reasoning; its groups are speciality"),
        ({"reasoning": []}, "has no data for the group reasoning"),
        ({"resoning": "x"}, "unknown key 'resoning'; did you mean 'reasoning'"),
        ({"zzz": "x"}, "unknown key 'zzz'; the known ones are speciality"),
        ({"reasoning": 4}, "The group reasoning has the entry 4; it must be a path or a mapping with a path"),
        ({"reasoning": {"name": "x"}}, "it must be a path or a mapping with a path"),
        ({"reasoning": {"path": "reasoning/sums.jsonl", "nmae": "x"}}, "unknown key 'nmae'; did you mean 'name'"),
        ({"reasoning": {"path": "reasoning/sums.jsonl", "chat": "yes"}}, "has 'yes' as 'chat', which is of the wrong"),
        ({"reasoning": {"path": "reasoning/sums.jsonl", "limit": True}}, "has True as 'limit'"),
        ({"reasoning": "reasoning/none.jsonl"}, r"none\.jsonl does not exist"),
        ({"reasoning": "empty"}, "The group reasoning has no task that can be scored"),
        ({"instruction": "instruction/ifeval.jsonl"}, "The group instruction has no task that can be scored"),
        ({"reasoning": "speciality/mine.jsonl"}, "Two tasks of the suite are named mine"),
        ({"limit": "all"}, "has the limit 'all'; it must be a whole number"),
        ({"limit": 0}, "is 0; it must be at least 1"),
        ({"limit": 1}, r"has 1 item\(s\); a score with a standard error needs at least 2"),
        ({"versatility": "none"}, "names the versatility folder .*none, which does not exist"),
        ({"versatility": 3}, "has under versatility neither a folder nor the groups"),
        ({"versatility": {"speciality": "x"}}, "under versatility, has the unknown key 'speciality'"),
    ],
)
def test_bad_mappings_are_told(folder, change, words):
    (folder / "empty").mkdir()
    with pytest.raises(CofituneError, match=words):
        read_suite({**{group: group for group in ALL}, **change}, root=folder)


def test_bad_files_are_told(folder):
    with pytest.raises(CofituneError, match=r"No suite at .*none\.yaml: the file does not exist"):
        read_suite(folder / "none.yaml")
    for text, words in (
        ("a: [", r"is not valid YAML at line 1"),
        ("- a", "must be a mapping with the keys speciality"),
    ):
        (folder / "bad.yaml").write_text(text)
        with pytest.raises(CofituneError, match=words):
            read_suite(folder / "bad.yaml")
    for path in (folder / "speciality").iterdir():
        path.unlink()
    (folder / "speciality").rmdir()
    with pytest.raises(CofituneError, match=r"The suite folder .* has no data for the group speciality"):
        read_suite(folder)


def test_side_files_are_no_tasks_and_bad_rows_are_noted(folder):
    before = names(read_suite(folder))
    for name in ("._words.jsonl", ".DS_Store", "._x.csv"):
        (folder / "knowledge" / name).write_bytes(b"\0\5\x16\7")
    assert names(read_suite(folder)) == before
    file = folder / "reasoning" / "sums.jsonl"
    file.write_text(file.read_text() + "broken\n")
    with pytest.raises(CofituneError, match=r"is broken JSON .* data\.on_bad_row: skip leaves such rows out"):
        read_suite(folder)
    suite = read_suite(folder, on_bad_row="skip")
    assert names(suite) == before
    assert suite.notes[0] == f"Left out 1 row that cannot be used: 1 with broken JSON ({file}:4)."
