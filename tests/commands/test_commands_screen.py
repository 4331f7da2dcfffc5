"""What the command line prints: names as they are, no control characters, one line for a warning."""

from __future__ import annotations

import io
import logging
import os
import warnings

import pytest
from rich.table import Table

from cofitune_fast.commands import app, printing
from cofitune_fast.commands.screen import Screen, printable

NAMES = ["run[v2]", "run[/b]", "run[bold]x", ":smile:", "run\x1b[31mred", "a\x07\x9b1mb", "x\u202egnp.exe", "cut\ud83d"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stays_a_name_in_lines_and_in_tables(name):
    screen = Screen(file=io.StringIO(), force_terminal=True, width=60, color_system=None)
    screen.print(f"{name}/delta", style="red")
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    screen.print(table)
    shown = screen.file.getvalue()
    assert shown.count(printable(name)) == 4
    assert not set(shown) & set("\x1b\x07\x9b\u202e\ud83d")
    shown.encode()


def test_printable_text_is_json_s_own_way_of_writing_it():
    assert printable("a\x1b\x7f\ud83d\n\té漢") == "a\\u001b\\u007f\\ud83d\n\té漢"


def test_lines_are_not_broken_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    screen = Screen(file=io.StringIO())
    screen.print("word " * 60)
    assert screen.file.getvalue().count("\n") == 1


def test_warnings_of_ours_are_one_line_and_those_of_others_none(capsys):
    with printing.calm():
        warnings.warn_explicit("3 rows were cut.", UserWarning, app.__file__, 1)
        warnings.warn_explicit("use the new API", FutureWarning, "/site-packages/other/lib.py", 1)
        logging.getLogger("cofitune_fast").warning("The prefix cache is off: [/b].")
        logging.getLogger("other").warning("noise")
    out, err = capsys.readouterr()
    assert out == "" and err == "3 rows were cut.\nThe prefix cache is off: [/b].\n"
    assert not logging.getLogger("cofitune_fast").handlers


def test_ctrl_c_is_one_true_line(capsys):
    def function() -> None:
        raise KeyboardInterrupt

    with pytest.raises(app.typer.Exit) as end:
        app._guarded(function)()
    assert end.value.exit_code == 130 and capsys.readouterr() == ("", "cofitune: stopped.\n")


def test_what_is_done_goes_on_when_the_reader_of_its_lines_has_gone():
    reading, writing = os.pipe()
    screen = Screen(file=os.fdopen(writing, "w"))
    os.close(reading)
    for _ in range(2):
        screen.print("a line\n" * 10_000)
    assert screen.quiet
