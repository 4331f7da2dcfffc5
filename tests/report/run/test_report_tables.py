from __future__ import annotations

import io
import sys

import pytest
from synthetic_report import failed_method, method, synthetic_report

from cofitune_fast.artefacts import checked
from cofitune_fast.errors import CofituneError
from cofitune_fast.report import methods_table, plain_table
from cofitune_fast.report.run.tables import detail_rows, flip_rows
from cofitune_fast.report.style import numbers as n


def spaces(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (n.score, 0.12345, "0.123"), (n.score, float("nan"), "–"), (n.score, None, "–"),
        (n.percent, 0.964, "96 %"), (n.percent, 0.0081, "0.8 %"), (n.percent, 0.9967, "99.7 %"),
        (n.percent, 1.0, "100 %"),
        (n.percent, 1.003, "100.3 %"), (n.percent, 0.0, "0 %"), (n.percent, 0.0001, "< 0.1 %"),
        (n.count, 0, "0"), (n.count, 999, "999"), (n.count, 1234, "1.23 K"), (n.count, 134_515_008, "135 M"),
        (n.count, 999_999_999, "1.00 B"), (n.count, 8.03e9, "8.03 B"),
        (n.byte_size, 2**30, "1.00 GiB"), (n.byte_size, 512, "512 B"), (n.byte_size, 80 * 2**30, "80.0 GiB"),
        (n.duration, 0.4, "0.4 s"), (n.duration, 59.6, "1 min"), (n.duration, 312, "5 min 12 s"),
        (n.duration, 0, "0 s"),
        (n.duration, 7500, "2 h 5 min"), (n.duration, 273_600, "3 d 4 h"), (n.duration, None, "–"),
        (n.rate, 4e-5, "4e-5"), (n.rate, 1.5e-4, "1.5e-4"), (n.rate, 0.001, "1e-3"), (n.rate, 0.1, "0.1"),
    ],
)  # fmt: skip
def test_numbers_as_text(function, value, text):
    assert spaces(function(value)) == text


def test_flips_are_shown_where_they_were_counted():
    flips = {"vers": {"right_to_wrong": 9, "wrong_to_right": 2, "items": 240, "p": 0.0654},
             "knowledge": {"right_to_wrong": 0, "wrong_to_right": 0, "items": 80, "p": 1.0}}
    report = synthetic_report(methods=[method("base", 0.1, 0.6), method("full SFT", 0.4, 0.5, flips=flips)])
    (row,) = flip_rows(checked("report", report))
    assert row.name == "full SFT" and {key: (cell.text, cell.small) for key, cell in row.cells.items()} == {
        "vers": ("−9 +2 of 240", "p 0.07"), "knowledge": ("−0 +0 of 80", "p 1.00")}
    assert flip_rows(checked("report", synthetic_report())) == []


def test_shortened_text_keeps_both_ends():
    assert n.shorten("ffn.up+ffn.down@25%-50%", 11) == "ffn.u…5%-50%"[:5] + "…" + "%-50%"
    assert n.shorten("short", 11) == "short" and all(len(n.shorten("x" * 50, k)) == k for k in range(3, 50))


def test_plain_table_holds_every_number_and_marks_leaders():
    text = plain_table(synthetic_report())
    line = next(line for line in text.splitlines() if line.startswith("CoFiTune fine"))
    for part in ("ffn.up+ffn.down@25%-50%", "0.421 ± 0.004", "0.598 ± 0.004*", "0.648 ± 0.011", "0.548 ± 0.012",
                 "0.598 ± 0.013", "1.019 ± 0.006*", "9.20 M (9.2 %)", "5 min 5 s", "1.49 GiB"):  # fmt: skip
        assert part in line
    assert "0.421 ± 0.004*" not in line  # full SFT has more Spec
    assert "*" not in next(line for line in text.splitlines() if line.startswith("base"))
    assert "combined standard error" in text.splitlines()[-1]


def test_a_failed_method_has_its_row_without_scores_and_its_reason():
    report = synthetic_report(complete=False)
    report["methods"][1] = failed_method("full SFT", "ran out of [memory]", trained_parameters=100_000_000)
    text = plain_table(report)
    (line,) = [line for line in text.splitlines() if line.startswith("full SFT (failed)")]
    assert line.split()[3:] == ["full", "–", "–", "–", "–", "–", "–", "100", "M", "(100", "%)", "–", "–"]
    assert "\nfull SFT failed: ran out of [memory].\n".replace("full", "Full", 1) in text
    assert "The run is not finished yet" in text and "(failed)" not in plain_table(synthetic_report())
    console = pytest.importorskip("rich.console")
    printer = console.Console(width=80, record=True, file=io.StringIO())
    printer.print(methods_table(report))
    shown = " ".join(printer.export_text().split())
    assert "Full SFT failed: ran out of [memory]." in shown and "The run is not finished yet" in shown


def test_rich_table_shows_the_same_and_takes_markup_as_text():
    console = pytest.importorskip("rich.console")
    report = synthetic_report(methods=[method("base", 0.1, 0.6), method("[red]LoRA[/red]", 0.4, 0.5)])
    printer = console.Console(width=80, record=True, file=io.StringIO())
    printer.print(methods_table(report))
    text = spaces(printer.export_text())
    assert "[red]LoRA[/red]" in text and "0.400" in text and "±.004" in text


def test_without_rich_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.table", None)
    with pytest.raises(CofituneError, match=r"pip install 'cofitune-fast\[cli\]'"):
        methods_table(synthetic_report())
    assert "CoFiTune fine" in plain_table(synthetic_report())


def test_details_have_a_row_for_each_task_and_other_metric():
    report = synthetic_report()
    del report["methods"][1]["details"]
    rows = detail_rows(checked("report", report))
    assert [(row.task, row.metric, row.n) for row in rows] == [("facts", "accuracy", "1,200"), ("", "exact", "")]
    assert [spaces(f"{cell.text} {cell.small}") for cell in rows[0].cells] == [
        "0.612 ± 0.004", "– ", "0.541 ± 0.004", "0.598 ± 0.004",
    ]  # fmt: skip
    assert [cell.text for cell in rows[1].cells] == ["0.306", "–", "0.271", "0.299"]
