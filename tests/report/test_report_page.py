from __future__ import annotations

import html
import json
import re
import sys
from html.parser import HTMLParser

import pytest
from synthetic_report import failed_method, method, node, synthetic_report

from cofitune_fast.artefacts import checked
from cofitune_fast.errors import CofituneError
from cofitune_fast.report import read_report, write_report
from cofitune_fast.report.run.tables import TITLES, method_rows

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Balanced(HTMLParser):
    """Collects ids and text and fails on tags that do not nest."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.text, self.tags = [], [], [], set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page_of(report, folder):
    text = write_report(report, folder)["html"].read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    return text, parser


def test_the_page_has_flips_where_they_were_counted(tmp_path):
    counted = {"right_to_wrong": 9, "wrong_to_right": 2, "items": 240, "p": 0.0654}
    _, page = page_of(synthetic_report(methods=[
        method("base", 0.1, 0.6), method("full SFT", 0.4, 0.5, flips={"vers": counted})]), tmp_path)
    assert {"Items that flipped", "−9 +2 of 240", "p 0.07"} <= set(page.text)
    assert "Items that flipped" not in page_of(synthetic_report(), tmp_path)[0]


def drawn(text: str) -> str:
    """The pictures of a page."""
    return "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))


def test_every_number_of_the_table_is_on_the_page(tmp_path):
    report = synthetic_report()
    text, _ = page_of(report, tmp_path)
    rows = method_rows(checked("report", report))
    assert len(rows) == 4
    for row in rows:
        assert html.escape(row.name) in text and row.region in text and row.setting in text
        for key in TITLES:
            assert f">{row.cells[key].text}<" in text and row.cells[key].small in text
    assert text.count(' best"') == sum(cell.best for row in rows for cell in row.cells.values()) > 0
    for word in ("Synthetic report", "made/up-100M", "ab" * 32, "One seed only.", "3 February 2001, 04:05 UTC", "16.0",
                 "cofitune compare --config x.yaml", "frozen tensors unchanged", "256 tensors"):  # fmt: skip
        assert word in text


def test_the_page_stands_alone(tmp_path):
    text, parser = page_of(synthetic_report(), tmp_path)
    assert not parser.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"""(src|href)\s*=\s*["'](?!\#)""", text)
    assert "http:" not in text and "https:" not in text and "@import" not in text and "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    assert text.count("<svg") == 6


def test_user_text_is_text(tmp_path):
    evil = "<script>alert('x')</script> & \"$q$\""
    report = synthetic_report(title=evil, notes=[evil], command=evil, environment={evil: evil}, split={"report": evil})
    report["methods"].append(method(evil, 0.3, 0.5, region=evil))
    report["checks"].append({"name": evil, "passed": False, "detail": evil})
    report["search"]["nodes"].append(node(evil, "d", 3, 0.3, 0.5, label=evil, region=evil, level_name=evil))
    report["search"].update(space=evil, split=evil)
    report["base"]["model"] = evil
    report["importance"]["preset"] = evil
    text, parser = page_of(report, tmp_path)
    assert "script" not in parser.tags
    assert "<script" not in text
    assert evil in parser.text  # it is there, as text


def test_pictures_follow_the_dark_scheme(tmp_path):
    text, _ = page_of(synthetic_report(), tmp_path)
    drawings = drawn(text)
    colors = set(re.findall(r"#[0-9a-f]{6}\b", drawings))
    assert "var(--ink)" in drawings and "var(--blue)" in drawings and colors == set()


def test_a_failed_check_is_an_alarm(tmp_path):
    report = synthetic_report()
    assert "checks failed" not in page_of(report, tmp_path / "good")[0]
    report["checks"][0]["passed"] = False
    text, _ = page_of(report, tmp_path / "bad")
    assert "1 of 2 checks failed." in text and "FAILED" in text


def test_a_failed_method_is_shown_as_failed_and_drawn_nowhere(tmp_path):
    report = synthetic_report(search=None, importance=None)
    whole, _ = page_of(report, tmp_path / "whole")
    assert 'class="why"' not in whole and "not finished" not in whole and drawn(whole).count(">full SFT<") == 2
    report["methods"][1] = failed_method("full SFT", "It ran out of <memory>.")
    text, parser = page_of(report | {"complete": False}, tmp_path / "failed")
    assert text.count('<td class="why" colspan="6"><b class="warn">failed</b> It ran out of &lt;memory&gt;.</td>') == 1
    assert "Full SFT failed: It ran out of &lt;memory&gt;." in text and "not finished yet" in "".join(parser.text)
    assert ">full SFT<" not in drawn(text) and drawn(text).count(">CoFiTune fine<") == 2
    assert text.count("<svg") == 2 and ">nan<" not in text.lower()
    rows = [row for row in re.findall(r"<tr.*?</tr>", text, flags=re.DOTALL) if "<td" in row]
    widths = {sum(int(span or 1) for span in re.findall(r"<td[^>]*?(?:colspan=\"(\d+)\")?>", row)) for row in rows[:4]}
    assert widths == {9}  # each method's row fills the table


def test_a_search_on_the_report_split_is_called_optimistic(tmp_path):
    report = synthetic_report()
    assert "optimistic" not in page_of(report, tmp_path / "apart")[0]
    report["search"]["split"] = "test"
    text, _ = page_of(report, tmp_path / "same")
    assert "optimistic" in text and "do not compare the points" not in text


def test_little_data(tmp_path):
    empty, _ = page_of({"base": {"model": "m"}, "methods": []}, tmp_path / "empty")
    assert "No method has been scored yet." in empty and "<svg" not in empty
    report = synthetic_report(importance=None)
    report["search"]["nodes"] = report["search"]["nodes"][:1]
    report["search"].update(chosen="a", seconds=None)
    report["methods"] = [method("full SFT", 0.3, 0.5) | {"vers": None, "uni": float("nan")}]
    text, _ = page_of(report, tmp_path / "one")
    assert "1 region trained" in text and text.count("<svg") == 2 and ">nan<" not in text.lower()


def test_the_json_beside_the_page_is_read_back(tmp_path):
    report = synthetic_report()
    report["methods"][1]["uni_se"] = float("nan")
    paths = write_report(report, tmp_path / "first")
    json.loads(paths["json"].read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert read_report(paths["json"])["methods"][3]["uni"] == report["methods"][3]["uni"]
    before = paths["json"].read_bytes()
    again = write_report(paths["json"], tmp_path / "first")
    assert paths["json"].read_bytes() == before
    copy = write_report(paths["json"], tmp_path / "second")
    assert copy["html"].read_text() == again["html"].read_text() == paths["html"].read_text()


def test_a_write_that_fails_leaves_the_old_page(tmp_path, monkeypatch):
    page = write_report(synthetic_report(), tmp_path)["html"]
    before = page.read_bytes()
    monkeypatch.setattr("cofitune_fast.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(synthetic_report(title="Another"), tmp_path)
    assert page.read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CofituneError, match=rf"{module}; install it with: pip install 'cofitune-fast\[report\]'"):
        write_report(synthetic_report(), tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CofituneError, match="Cannot write to the folder"):
        write_report(synthetic_report(), tmp_path / "file")
