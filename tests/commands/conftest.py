"""The command line, run in this process."""

import math
import sys

import pytest

from cofitune_fast import cli


@pytest.fixture
def command_line(monkeypatch, capsys):
    """Runs `cofitune ARGUMENTS`; returns (status, standard output, standard error in one line).

    However slow the machine is, no line says what is being done: a display test turns a clock for that.
    """
    monkeypatch.setattr("cofitune_fast.display.progress.FIRST", math.inf)
    monkeypatch.setattr("cofitune_fast.display.progress.EVERY", math.inf)

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["cofitune", *map(str, argv)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        out, err = capsys.readouterr()
        return status, out, " ".join(err.split())

    return run
