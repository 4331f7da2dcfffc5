"""Writes slow_tests.txt, the tests that `make check` leaves out, from the times of a run.

    .venv/bin/pytest -n auto --dist loadfile --junitxml=build/tests.xml
    .venv/bin/python tests/slow_tests.py build/tests.xml
    COFITUNE_TEST=check .venv/bin/pytest -n auto --dist loadfile --junitxml=build/check.xml
    .venv/bin/python tests/slow_tests.py build/tests.xml build/check.xml

The check's own report shows who now waits for a fixture that a test left out has shared. A test stands in the list by
its name alone, so that it may move to another file. A new test is in the check until it is found to be slow, and so is
one that has been renamed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

LIMIT = 0.3  # seconds of the first case, its fixtures included
LIST = Path(__file__).with_name("slow_tests.txt")


def slow_tests(report: str | Path, limit: float = LIMIT) -> list[str]:
    """The names of tests whose first case took longer than `limit` seconds, by a report in pytest's JUnit XML."""
    first: dict[tuple[str, str], float] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        first.setdefault((case.get("classname"), case.get("name").split("[")[0]), float(case.get("time")))
    return sorted({name for (_, name), seconds in first.items() if seconds > limit})


if __name__ == "__main__":
    names = sorted({name for report in sys.argv[1:] for name in slow_tests(report)})
    LIST.write_text("\n".join(names) + "\n", encoding="utf-8")
