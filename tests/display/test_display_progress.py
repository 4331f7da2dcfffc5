"""What is shown of long work: no log is silent for more than 20 seconds, by a clock that the test turns."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from cofitune_fast.display import JsonLines, PlainDisplay, shown_progress
from cofitune_fast.display.progress import Bars, SparseLines
from cofitune_fast.progress import progress, tracked, under_way


class Watched:
    """Sparse lines with a clock of their own; `wait(seconds)` looks once a second, as the thread does."""

    def __init__(self, **options):
        self.now, self.lines = 0.0, []
        self.sparse = SparseLines(lambda text: self.lines.append((self.now, text)), clock=lambda: self.now, **options)

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            self.sparse.look()


def test_a_piece_of_work_is_told_after_10_seconds_and_then_every_20_at_most():
    watched = Watched()
    with progress("Writing the anchor's texts", 192, "texts") as task:
        watched.wait(9)
        assert watched.lines == []
        task.advance(64)
        watched.wait(51)
    times = [time for time, _ in watched.lines]
    assert times[0] == 10 and len(times) == 3
    assert max(later - before for before, later in zip([0.0, *times], [*times, 60.0], strict=True)) <= 20
    assert watched.lines[0][1] == "Writing the anchor's texts: 64 of 192 texts"


def test_a_line_of_somebody_else_is_waited_for():
    watched = Watched(otherwise=lambda: "still at: Report")
    watched.wait(9)
    watched.sparse.heard()
    watched.wait(9)
    assert watched.lines == []
    watched.wait(1)
    assert watched.lines == [(19, "still at: Report")]


def test_work_inside_other_work_is_told_with_it_and_forgotten_with_an_error():
    watched = Watched()
    with pytest.raises(ValueError, match="stop"), progress("Scoring facts"):
        for done in tracked(range(3), "Scoring answers", "answers"):
            if done == 2:
                watched.wait(10)
                raise ValueError("stop")
    assert watched.lines == [(10, "Scoring facts › Scoring answers: 2 of 3 answers")]
    assert under_way() == []


def test_a_terminal_has_a_bar_and_a_quiet_console_nothing():
    screen = Console(file=io.StringIO(), width=100, force_terminal=True)
    with progress("Training", 40, "steps") as task:
        task.advance(30)
        task.note = "loss 1.25"
        with shown_progress(screen):
            pass  # drawn once at the beginning
        screen.print(Bars())
    shown = screen.file.getvalue()
    assert shown.count("30 of 40 steps") >= 2 and "loss 1.25" in shown and "━" in shown
    silent = Console(file=io.StringIO(), quiet=True)
    with progress("Training"), shown_progress(silent):
        pass
    assert silent.file.getvalue() == ""


def test_the_displays_of_a_run_say_what_is_done_between_their_events(monkeypatch):
    monkeypatch.setattr("cofitune_fast.display.progress._LOOK", 0.001)
    monkeypatch.setattr("cofitune_fast.display.progress.FIRST", 0.0)
    screen, stream = Console(file=io.StringIO(), width=100), io.StringIO()
    for display, file in ((PlainDisplay(screen), screen.file), (JsonLines(stream), stream)):
        with display.running(), progress("Hashing weights", 4, "tensors"):
            display.stage("Loading the base")
            while "Hashing" not in file.getvalue():
                pass
    assert "]   Hashing weights: 0 of 4 tensors\n" in screen.file.getvalue()
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {"progress", "stage"} == {one["event"] for one in events}
    assert events[-1]["text"] == "Hashing weights: 0 of 4 tensors"
