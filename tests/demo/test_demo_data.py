"""The embedded data: files as generated, well-formed, splits disjoint, answers not to be guessed from their form."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from demo_data import commonsense, constraints, generate, knowledge, reasoning, speciality

from cofitune_fast.demo import data_folder

COUNTS = {
    "speciality/train.jsonl": 400,
    "speciality/valid.jsonl": 80,
    "speciality/test.jsonl": 160,
    "versatility/valid/knowledge/facts.jsonl": 120,
    "versatility/test/knowledge/facts.jsonl": 240,
    "versatility/valid/reasoning/puzzles.jsonl": 120,
    "versatility/test/reasoning/puzzles.jsonl": 240,
    "versatility/valid/instruction/responses.jsonl": 60,
    "versatility/test/instruction/responses.jsonl": 110,
    "versatility/valid/instruction/constraints.jsonl": 60,
    "versatility/test/instruction/constraints.jsonl": 120,
    "versatility/valid/knowledge/fact_sentences.jsonl": 60,
    "versatility/test/knowledge/fact_sentences.jsonl": 120,
    "versatility/valid/reasoning/puzzle_sentences.jsonl": 60,
    "versatility/test/reasoning/puzzle_sentences.jsonl": 120,
}
CHOICE_FILES = [name for name in COUNTS if name.endswith(("facts.jsonl", "puzzles.jsonl", "constraints.jsonl"))]
SUITE_FILES = [name.removeprefix("versatility/valid/") for name in COUNTS if name.startswith("versatility/valid/")]


def rows_of(name: str) -> list[dict]:
    return [json.loads(line) for line in (data_folder() / name).read_text(encoding="utf-8").splitlines()]


def test_generate_rewrites_the_committed_files_byte_for_byte(tmp_path):
    written = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in generate.generate(tmp_path)}
    committed = {
        path.relative_to(data_folder()).as_posix(): path.read_bytes() for path in data_folder().rglob("*.jsonl")
    }
    assert written == committed


def test_another_seed_gives_other_rows():
    assert speciality.make_splits(seed=1) != speciality.make_splits(seed=0)
    assert knowledge.make_rows(seed=1) != knowledge.make_rows(seed=0)


def test_counts():
    assert {name: len(rows_of(name)) for name in COUNTS} == COUNTS


@pytest.mark.parametrize("name", CHOICE_FILES)
def test_choice_rows_are_well_formed(name):
    for row in rows_of(name):
        assert row["query"] == row["query"].strip() != ""
        assert 2 <= len(row["choices"]) <= 4
        assert len(set(row["choices"])) == len(row["choices"]), row
        assert all(choice == choice.strip() != "" for choice in row["choices"])
        assert row["gold"] in range(len(row["choices"]))
        assert (row.get("chat") is True) == name.endswith("constraints.jsonl")


@pytest.mark.parametrize("name", [name for name in COUNTS if name not in CHOICE_FILES])
def test_text_rows_are_well_formed(name):
    fields = ("prompt", "completion") if "speciality" in name else ("instruction", "input", "output")
    for row in rows_of(name):
        assert tuple(row) == fields
        assert all(value == value.strip() and "  " not in value for value in row.values())
        assert all(value for field, value in row.items() if field != "input")


@pytest.mark.parametrize("name", SUITE_FILES)
def test_no_row_of_valid_comes_back_in_test(name):
    def keys(split: str) -> list[tuple]:
        rows = rows_of(f"versatility/{split}/{name}")
        if name.endswith(("responses.jsonl", "sentences.jsonl")):  # some instructions differ in their input only
            return [(row["instruction"], row["input"]) for row in rows] + [row["output"] for row in rows]
        return [(row["query"],) for row in rows]

    both = keys("valid") + keys("test")
    assert len(set(both)) == len(both)


@pytest.mark.parametrize("name", CHOICE_FILES)
def test_neither_place_nor_length_gives_the_answer_away(name):
    rows = rows_of(name)
    chance = sum(1 / len(row["choices"]) for row in rows) / len(rows)

    def accuracy(guess) -> float:  # ties share the point
        total = 0.0
        for row in rows:
            best = guess([len(choice) for choice in row["choices"]])
            total += (len(row["choices"][row["gold"]]) == best) / [len(c) for c in row["choices"]].count(best)
        return total / len(rows)

    assert accuracy(max) < chance + 0.12
    assert accuracy(min) < chance + 0.12
    for place in range(max(len(row["choices"]) for row in rows)):
        able = [row for row in rows if place < len(row["choices"])]
        expected = sum(1 / len(row["choices"]) for row in able)
        spread = sum((1 - 1 / len(row["choices"])) / len(row["choices"]) for row in able) ** 0.5
        assert abs(sum(row["gold"] == place for row in able) - expected) < 2.6 * spread


# speciality


def test_no_meaning_stands_in_two_splits_or_twice():
    meanings = speciality.make_meanings()
    flat = [meaning for split in meanings.values() for meaning in split]
    assert len(set(flat)) == len(flat) == 640
    codes = [row["completion"] for split in speciality.make_splits().values() for row in split]
    assert len(set(codes)) == len(codes)


def test_every_code_of_valid_and_test_can_be_learnt_from_train():
    splits = speciality.make_splits()
    train = Counter(word for row in splits["train"] for word in row["completion"].split())
    assert {word for split in ("valid", "test") for row in splits[split] for word in row["completion"].split()} <= {
        word for word, count in train.items() if count >= 2
    }


def test_the_code_of_a_direction():
    meaning = speciality.Meaning("ii", "tab", "po", "bid", timing="cc", duration="x7d")
    assert speciality.code(meaning) == "ii tab po bid cc x7d"
    assert speciality.code(speciality.Meaning("", "ung", "os", "qid", reason="itch")) == "ung os qid prn itch"
    assert speciality.code(speciality.Meaning("10 ml", "syr", "po", "q6h")) == "10 ml syr po q6h"


def test_a_wording_names_every_part_of_its_meaning():
    import random

    meaning = speciality.Meaning("ii", "gtt", "ou", "tid", duration="x5d")
    for seed in range(40):
        text = speciality.direction(meaning, random.Random(seed)).lower()
        assert "2 drops" in text or "two drops" in text
        assert any(words in text for words in speciality.ROUTES["ou"])
        assert any(words in text for words in speciality.FREQUENCIES["tid"])
        assert any(words in text for words in speciality.DURATIONS["x5d"])


def test_no_two_codes_share_a_wording():
    for table in (speciality.DOSES, speciality.FREQUENCIES, speciality.TIMINGS, speciality.DURATIONS):
        wordings = [wording for words in table.values() for wording in words]
        assert len(set(wordings)) == len(wordings)
    for form in speciality.FORMS.values():  # "to the skin" means td for a patch, top for an ointment
        wordings = [wording for route in set(form.routes) for wording in speciality.ROUTES[route]]
        assert len(set(wordings)) == len(wordings)


# versatility


def test_a_question_offers_one_right_answer():
    for table in knowledge.TABLES:
        for subject, answers in table.facts.items():
            assert len(answers) in (1, knowledge.CHOICES), (table.name, subject)
        assert len({answer for answers in table.facts.values() for answer in answers}) >= knowledge.CHOICES


def test_no_puzzle_has_the_key_of_another():
    puzzles = reasoning.make_puzzles()
    keys = [key for split in puzzles.values() for key, *_ in split]
    assert len(set(keys)) == len(keys)
    written = {query for query, _, _ in commonsense.ENDINGS}
    assert len(written) == len(commonsense.ENDINGS) >= 80
    assert {split: sum(key in written for key, *_ in rows) for split, rows in puzzles.items()} == {
        "valid": 40,
        "test": 80,
    }


def test_arithmetic_is_right():
    import random
    import re

    for make, value in ((reasoning.addition, lambda a, b: a + b), (reasoning.subtraction, lambda a, b: a - b),
                        (reasoning.multiplication, lambda a, b: a * b)):  # fmt: skip
        for seed in range(50):
            _, query, right, wrong = make(random.Random(seed))
            assert int(right) == value(*map(int, re.findall(r"\d+", query)))
            assert right not in wrong and len(set(wrong)) == 3


def test_one_reply_of_three_obeys():
    for name, kind in constraints.KINDS.items():
        assert len(kind.pool) == 9
        for item in kind.pool:
            _, right, wrong = kind.make(item)
            assert kind.obeys(item, right), (name, right)
            assert not any(kind.obeys(item, reply) for reply in wrong), (name, wrong)
