"""Draft of a configuration: our settings so far, and a note on each key of the other tool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

Kind = Literal["taken", "changed", "default", "not needed", "not supported", "not known"]


@dataclass(frozen=True)
class Note:
    """Note on one key.

    Attributes:
        kind: "taken" as it is; "changed", see `text`; "default" of the other tool, which differs from ours and is
            therefore written; "not needed" here; "not supported", where `text` says what to do; "not known".
        key, value: as the other tool has them; value is None for a default.
        ours: our key, section.key, if one was written.
        text: why, or what to do instead; one or two sentences without a full stop, or empty.
    """

    kind: Kind
    key: str
    value: Any = None
    ours: str | None = None
    text: str = ""


@dataclass
class Draft:
    """Settings and notes in the order of the other tool's file.

    Attributes:
        tool: its name, such as "Axolotl".
        file: the file that is read; other files are looked for beside it.
        source: its keys and values.
        model: a local copy of the base, which is named in place of the one in the file.
        processes: number of processes that the file starts; None if it does not say.
        settings: our values by full key, such as "training.learning_rate".
    """

    tool: str
    file: Path
    source: Mapping[str, Any]
    model: str | None = None
    processes: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def take(self, key: str, ours: str | None, value: Any = None) -> None:
        """Write the user's value under our key; without one, what the key asks for is done here anyway."""
        self._write(Note("taken", key, self.source.get(key), ours), value)

    def change(self, key: str, ours: str | None, value: Any, why: str) -> None:
        """Write another value than the user's."""
        self._write(Note("changed", key, self.source.get(key), ours, why), value)

    def default(self, key: str, ours: str, value: Any, why: str = "") -> None:
        """Write the other tool's default, unless our key is set already."""
        if ours not in self.settings:
            self._write(Note("default", key, None, ours, why), value)

    def needless(self, key: str, why: str = "") -> None:
        self.notes.append(Note("not needed", key, self.source.get(key), text=why))

    def refuse(self, key: str, instead: str) -> None:
        """Note that a key is not supported, and what to do."""
        self.notes.append(Note("not supported", key, self.source.get(key), text=instead))

    def unknown(self, key: str) -> None:
        self.notes.append(Note("not known", key, self.source.get(key)))

    def withdraw(self, ours: str, why: str) -> None:
        """Remove a setting that turned out not to be possible; its note says why."""
        del self.settings[ours]
        self.notes = [replace(note, kind="not supported", ours=None, text=why) if note.ours == ours else note
                      for note in self.notes]

    def put_in_order(self) -> None:
        """Sort notes and settings as the keys stand in the user's file; what has no key there comes last."""
        places = {key: place for place, key in enumerate(self.source)}
        self.notes.sort(key=lambda note: places.get(note.key, len(places)))
        written = dict.fromkeys(note.ours for note in self.notes if note.ours in self.settings)
        self.settings = {ours: self.settings[ours] for ours in written if ours is not None}

    def _write(self, note: Note, value: Any) -> None:
        if note.ours is not None:
            self.settings[note.ours] = value
        self.notes.append(note)


Rule = Callable[[Draft, str, Any], None]
"""Function of draft, key and value that settles one key."""
