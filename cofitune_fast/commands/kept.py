"""Results and checkpoints that an earlier or a stopped run has left in its folder: whether the same command goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import typer

from ..config import Config
from ..errors import CofituneError
from ..json_text import read_json, write_json
from ..regions import read_delta
from ..signals import exit_status
from ..training import changes, find_checkpoint
from ..training.checkpoint import Checkpoint, checkpoints
from .app import console, warn

_BEGAN = "began.json"
_WAYS_OUT = "restore them, choose another output folder, or give --overwrite to start anew"


@contextmanager
def says_what_is_kept(output: str | Path | None) -> Iterator[None]:
    """On Ctrl-C or its like, end the command and say what is kept; nothing is claimed that is not there."""
    try:
        yield
    except KeyboardInterrupt as error:
        finished = output is not None and _something_is_finished(Path(output))
        warn("\ncofitune: stopped. What is finished is kept; the same command goes on from there." if finished
                      else "\ncofitune: stopped. Nothing was finished yet, so the same command starts anew.")
        raise typer.Exit(exit_status(error)) from None


def _something_is_finished(output: Path) -> bool:
    journal = output / "journal.jsonl"
    begun = journal.is_file() and journal.read_bytes().count(b"\n") > 1  # the first line holds the settings
    return begun or any(output.glob("runs/*.json")) or any(output.glob("nodes/*/checkpoint-*/checkpoint.json"))


def fix_date(settings: Config, output: str | Path) -> None:
    """Give a run that goes on in a folder the date on which it began there, unless its settings name one."""
    if settings.data.date is None:
        path = Path(output) / _BEGAN
        settings.data.date = (read_json(path, "beginning of a run", {"date": str})["date"] if path.is_file() else
                              str(date.today()))


def note_date(settings: Config, output: str | Path) -> None:
    """Write the date of a run into its folder, where `fix_date` finds it."""
    if not (Path(output) / _BEGAN).is_file():
        write_json(Path(output) / _BEGAN, {"date": settings.data.date})


class Earlier:
    """Finished delta and checkpoints of earlier runs in an output folder.

    Args:
        resume: `training.resume_from_checkpoint`; True requires a checkpoint, a text names one.
        overwrite: pass over a finished delta and what has another identity.

    Raises:
        CofituneError: the delta is damaged, or the named checkpoint is.
    """

    def __init__(self, output: Path, resume: str | bool | None, overwrite: bool):
        self.output, self.overwrite, self._required = output, overwrite, bool(resume)
        self.delta = output / "delta"
        of_delta = read_delta(self.delta).settings if self.delta.exists() else {}
        self._finished = of_delta if self.delta.exists() and not overwrite else None
        if isinstance(resume, str):
            self.checkpoints = [Checkpoint.read(find_checkpoint(resume, output))]
        else:
            done = (of_delta.get("run") or {}).get("run")
            self.checkpoints = [one for one in checkpoints(output) if one.resumable and one.run != done]

    @property
    def finished(self) -> dict[str, Any] | None:
        """Fields of the TrainResult that made the finished delta; None where there is none, or it is overwritten."""
        return self._finished["run"] if self._finished is not None else None

    @property
    def began(self) -> str | None:
        """Date of the run that is gone on with or finished, YYYY-MM-DD: that of its template, or when it began."""
        if self._finished is not None:
            return (self._finished.get("identity") or {}).get("date") or self._finished.get("began")
        return next((one.identity.get("date") or one.began for one in self.checkpoints), None)

    def check(self, identity: Mapping[str, Any]) -> None:
        """Keep what is of the run `identity`, as far as that is known; what is of another run is refused.

        Raises:
            CofituneError: a finished delta or all checkpoints are of other runs; the sentence names the differences.
        """
        if self._finished is not None:
            was = self._finished.get("identity")
            if not was or not self._finished.get("run"):
                raise CofituneError(f"{self.delta} holds the result of an earlier run, which does not say how it was "
                                    "finished; choose another output folder, or give --overwrite.")
            if changed := changes(was, identity):
                raise CofituneError(f"{self.delta} holds the result of an earlier run with other settings or data "
                                    f"({'; '.join(changed)}); {_WAYS_OUT}.")
            return
        same = [one for one in self.checkpoints if not changes(one.identity, identity)]
        if self.checkpoints and not same and not (self.overwrite and not self._required):
            newest = self.checkpoints[0]
            raise CofituneError(f"{newest.path} is the checkpoint of a run with other settings or data "
                                f"({'; '.join(changes(newest.identity, identity))}); {_WAYS_OUT}.")
        self.checkpoints = same

    def take(self) -> str | None:
        """Return the newest checkpoint that is whole, and say from which step the run goes on; None to start anew.

        Raises:
            CofituneError: `resume` requires a checkpoint, and there is none.
        """
        for one in self.checkpoints:
            if one.whole():
                state = read_json(one.path / "trainer_state.json", "state of a training", {"max_steps": int})
                console.print(f"Going on from step {one.step} of {state['max_steps']}")
                return str(one.path)
            console.print(f"{one.path} is damaged or incomplete, so it is passed over")
        return find_checkpoint(True, self.output) if self._required else None


def step_to_go_on_from(output: Path) -> int | None:
    """Return the step of the newest checkpoint in a folder; None if there is none."""
    return next((one.step for one in checkpoints(output) if one.resumable), None)
