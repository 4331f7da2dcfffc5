"""Checks that this checkout can become a release: `make release-check`, and once more when its tag is published.

    python .github/release.py                one line for each thing that is missing; status 1 if there is one
    python .github/release.py --tag v0.2.0   the tag must be that of the version too
    python .github/release.py --notes        prints the version's section of the changelog

The version stands in cofitune_fast/__init__.py alone. CONTRIBUTING.md has the steps of a release.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def version(root: Path = ROOT) -> str:
    text = (root / "cofitune_fast" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


def notes(root: Path, wanted: str) -> str | None:
    """The section `## VERSION (DATE)` of the changelog without its heading; None if there is none."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(wanted)} \(\d{{4}}-\d\d-\d\d\)\n(.*?)(?=^## |\Z)", text,
                      re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else None


def unreleased(root: Path) -> str:
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(r"^## Unreleased\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def missing(root: Path, tag: str | None = None) -> list[str]:
    """What a release still needs, as sentences."""
    number = version(root)
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", number):
        found.append(f"__version__ in cofitune_fast/__init__.py is {number}; write it as 1.2.3 or 1.2.3rc1.")
    if "version" in project:
        found.append("pyproject.toml names a version of its own; cofitune_fast/__init__.py is its one place.")
    if not notes(root, number):
        found.append(f"CHANGELOG.md has nothing under '## {number} (YYYY-MM-DD)'; name the section of what is new so.")
    if unreleased(root):
        found.append(f"CHANGELOG.md has lines under 'Unreleased'; move them to the section of {number}.")
    if "Repository" not in project.get("urls", {}):
        found.append("pyproject.toml names no Repository under [project.urls], to which the README's links lead on "
                     "the package index; add its address.")
    if tag is not None and tag != f"v{number}":
        found.append(f"The tag {tag} is not that of the version; it must be v{number}.")
    if tag is None and subprocess.run(["git", "rev-parse", "-q", "--verify", f"refs/tags/v{number}"], cwd=root,
                                      capture_output=True).returncode == 0:
        found.append(f"There is a tag v{number} already; raise __version__ in cofitune_fast/__init__.py.")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tag")
    parser.add_argument("--notes", action="store_true")
    asked = parser.parse_args()
    if asked.notes:
        print(notes(ROOT, version()) or "")
        return 0
    found = missing(ROOT, asked.tag)
    print("\n".join(found) or f"Version {version()} is ready to be tagged v{version()}.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
