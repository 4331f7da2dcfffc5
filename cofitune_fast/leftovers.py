"""Temporary names that tell their owner, and the removal of what killed processes left under such names."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
from contextlib import suppress
from pathlib import Path

_OWNED = re.compile(r"\.(?P<name>.+)\.(?P<kind>new|old)-(?P<machine>[0-9a-f]{8})-(?P<pid>\d{1,10})-(?P<start>\d{1,20})-"
                    r"[0-9a-f]{12}(\.[^.]*)?")
_SWEPT: set[tuple[int, Path]] = set()  # (process, folder), because a forked child begins anew


def unused_name(path: Path, kind: str = "new") -> Path:
    """Return an unused hidden name in the same folder, with the same suffix, that tells its owner: this process.

    kind: "new" for what is being written, "old" for what was moved aside. `sweep` reads these names.
    """
    pid = os.getpid()
    owner = f"{kind}-{_machine()}-{pid}-{_start(pid) or 0}-{secrets.token_hex(6)}"
    return path.with_name(f".{path.name}.{owner}{path.suffix}")


def sweep(folder: str | Path) -> None:
    """Remove what killed processes of this machine left in `folder` under a temporary name.

    A folder that was moved aside goes back if nothing has taken its place. What a living process writes stays, and so
    does what another machine or container wrote, because from here one cannot see whether its owner lives. What cannot
    be read or removed stays too: leftovers never stop a run.
    """
    with suppress(OSError):
        for left in list(Path(folder).iterdir()):
            found = _OWNED.fullmatch(left.name)
            if found is None or found["machine"] != _machine() or _lives(int(found["pid"]), int(found["start"])):
                continue
            with suppress(OSError):
                place = left.with_name(found["name"])
                if found["kind"] == "old" and not os.path.lexists(place):
                    os.replace(left, place)
                elif left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:
                    left.unlink()


def sweep_once(folder: Path) -> None:
    """Sweep a folder at the first write of this process, which costs one reading of its names."""
    mark = os.getpid(), Path(os.path.abspath(folder))
    if mark not in _SWEPT:
        _SWEPT.add(mark)
        sweep(folder)


def _machine() -> str:
    """Return eight digits for the machine and its space of process numbers: a container has its own."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def _start(pid: int) -> int | None:
    """Return the time at which a process began, in ticks since the machine's start; None if it is not known."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[19])  # after the name, which may hold blanks and brackets
    except (OSError, ValueError, IndexError):
        return None


def _lives(pid: int, start: int) -> bool:
    """Whether the process that began at `start` may still live: a number is given again to later processes."""
    if os.name == "nt":  # there signal 0 is no question
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    now = _start(pid)
    return now is None or not start or now == start
