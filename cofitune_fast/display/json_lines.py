"""Display as JSON Lines, one object per event, for programs that watch a search."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from ..report.read import plain_json
from ..search import Candidate, Level, Node
from .progress import SparseLines


class JsonLines:
    """Writes one JSON object per event to a stream, flushed line by line.

    Every line has `event` (stage, note, level, rung, start, finish, drop, chosen, remaining, progress) and `time`, the
    seconds since the start. `progress` says what is being done where no other event came for a while. The other
    fields depend on the event. A number that is not finite is null.
    """

    def __init__(self, stream: TextIO):
        self.stream, self.began = stream, time.perf_counter()
        self._title = ""
        self._lines = SparseLines(lambda text: self._event("progress", text=text), lambda: self._title)

    @contextmanager
    def running(self) -> Iterator[None]:
        with self._lines.running():
            yield

    def _event(self, event: str, **fields: Any) -> None:
        line = {"event": event, "time": round(time.perf_counter() - self.began, 3), **fields}
        self.stream.write(f"{json.dumps(plain_json(line), ensure_ascii=False, allow_nan=False)}\n")
        self.stream.flush()
        self._lines.heard()

    def stage(self, title: str) -> None:
        self._title = title
        self._event("stage", title=title)

    def note(self, text: str) -> None:
        self._event("note", text=text)

    def level(self, level: Level, candidates: list[Candidate]) -> None:
        number = candidates[0].level if candidates else None
        self._event("level", level=number, name=level.name, nodes=[_candidate(one) for one in candidates])

    def rung(self, fraction: float, candidates: list[Candidate]) -> None:
        self._event("rung", fraction=fraction, nodes=[one.id for one in candidates])

    def start(self, candidate: Candidate, fraction: float) -> None:
        self._event("start", **_candidate(candidate), fraction=fraction)

    def finish(self, node: Node, best: Node, from_journal: bool) -> None:
        rung = node.rungs[-1]
        self._event(
            "finish", **_node(node), fraction=rung.fraction, scores=rung.scores, cost=rung.cost,
            from_journal=from_journal, best=best.id,
        )

    def drop(self, node: Node) -> None:
        self._event("drop", **_node(node), fraction=node.fraction, reason=node.dropped)

    def chosen(self, node: Node, sentence: str) -> None:
        self._event("chosen", **_node(node), fraction=node.fraction, scores=node.scores, sentence=sentence)

    def remaining(self, seconds: float | None) -> None:
        self._event("remaining", seconds=seconds)


def _candidate(one: Candidate) -> dict[str, Any]:
    return {"id": one.id, "parent": one.parent, "region": str(one.region), "rate_factor": one.rate_factor}


def _node(node: Node) -> dict[str, Any]:
    return {
        "id": node.id, "parent": node.parent, "level": node.level, "region": node.region,
        "learning_rate": node.learning_rate, "trained_parameters": node.trained_parameters,
    }
