"""The command line, run in this process."""

import sys

import pytest

from cofitune_fast import cli


@pytest.fixture
def command_line(monkeypatch, capsys):
    """Runs `cofitune ARGUMENTS`; returns (status, standard output, standard error in one line)."""
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
