"""Readers of files from strangers: a changed file is read, or refused in one sentence; nothing else.

COFITUNE_FUZZ=50000 makes so many changes, shared by the readers, and prints what became of them with `-s`.
"""

from __future__ import annotations

import os
import random
import resource
import signal
from collections import Counter
from pathlib import Path

import pytest
from mutation import mutated
from readers import READERS

from cofitune_fast.errors import CofituneError

CASES = int(os.environ.get("COFITUNE_FUZZ", "0"))
LONGEST, MOST_MEMORY = 20, 2 << 30  # seconds; bytes beside those of the process


class Endless(BaseException):
    """A reader that does not come to an end."""


@pytest.fixture
def bounded():
    """Bounds of time and memory. Only the long run has them: the memory of a short one is known by its files."""
    if not CASES:
        yield
        return

    def stop(*_):
        raise Endless

    before, limit = signal.signal(signal.SIGALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, limit[1]))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, limit)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name.replace(" ", "_"))
def test_a_changed_file_is_read_or_refused_in_a_sentence(reader, tmp_path, bounded, caplog):
    folder = tmp_path / "inside"
    folder.mkdir()
    reader.write(folder)
    reader.read(folder)  # the good file
    kept = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    became = Counter()
    for number in range(CASES // len(READERS) if CASES else 12):
        for file, content in kept.items():  # what the reader before has cut off or written
            if not file.is_file() or file.stat().st_size != len(content) or file.read_bytes() != content:
                file.write_bytes(content)
        changed = folder / reader.file
        changed.write_bytes(mutated(kept[changed], reader.kind, random.Random(f"{reader.name} {number}")))
        if CASES:
            signal.alarm(LONGEST)
        try:
            reader.read(folder)
            became["read"] += 1
        except CofituneError as error:
            assert len(str(error)) < 20_000
            became["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"{reader.name}, change {number}: {type(error).__name__}") from error
        finally:
            if CASES:
                signal.alarm(0)
        caplog.clear()
    print(f"{reader.name}: {dict(became)}")
    assert [path.name for path in tmp_path.iterdir()] == ["inside"], "something was written outside the folder"
