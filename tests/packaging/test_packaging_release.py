"""A release is refused as long as something of it is missing, and the files for a public host can be read."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml

import cofitune_fast

ROOT = Path(__file__).parents[2]
RELEASE = runpy.run_path(str(ROOT / ".github" / "release.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture
def checkout(tmp_path):
    """A checkout that is ready to be released as 0.2.0."""
    (tmp_path / "cofitune_fast").mkdir()
    (tmp_path / "cofitune_fast" / "__init__.py").write_text('__version__ = "0.2.0"\n')
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n[project.urls]\nRepository = "https://host/x"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 0.2.0 (2026-12-01)\n\n- New.\n\n"
                                           "## 0.1.0 (2026-11-01)\n\n- Old.\n")
    return tmp_path


def test_what_is_ready_lacks_nothing(checkout):
    assert RELEASE["missing"](checkout) == [] == RELEASE["missing"](checkout, "v0.2.0")
    assert RELEASE["notes"](checkout, "0.2.0") == "- New."
    assert RELEASE["version"]() == cofitune_fast.__version__


@pytest.mark.parametrize("file, old, new, words", [
    ("cofitune_fast/__init__.py", "0.2.0", "0.2", "write it as 1.2.3"),
    ("cofitune_fast/__init__.py", "0.2.0", "0.3.0", "nothing under '## 0.3.0 (YYYY-MM-DD)'"),
    ("pyproject.toml", 'name = "x"', 'version = "0.2.0"', "a version of its own"),
    ("pyproject.toml", "Repository", "Homepage", "no Repository"),
    ("CHANGELOG.md", "## Unreleased\n", "## Unreleased\n- Forgotten.\n", "lines under 'Unreleased'"),
    ("CHANGELOG.md", "- New.\n", "", "nothing under '## 0.2.0"),
])
def test_one_thing_missing_is_one_sentence(checkout, file, old, new, words):
    text = (checkout / file).read_text()
    assert old in text
    (checkout / file).write_text(text.replace(old, new, 1))
    assert words in RELEASE["missing"](checkout)[0]


def test_a_tag_must_be_that_of_the_version(checkout):
    (sentence,) = RELEASE["missing"](checkout, "v0.1.9")
    assert "must be v0.2.0" in sentence


def test_the_public_host_runs_what_is_there():
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "wheels.yml"]
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = set(PYPROJECT["project"]["optional-dependencies"])
    pythons = {line.rpartition(" ")[2] for line in PYPROJECT["project"]["classifiers"]
               if re.search(r":: 3\.\d+$", line)}
    for path in WORKFLOWS:
        text = path.read_text(encoding="utf-8")
        workflow = yaml.safe_load(text)
        assert "secrets." not in text
        for job in workflow["jobs"].values():
            for step in job["steps"]:
                assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", step.get("uses", "a/b@v1.0.0")), step
                for wanted in re.findall(r"make ([a-z -]+)", step.get("run", "")):
                    assert set(wanted.split()) <= targets
                for wanted in re.findall(r"\.\[([a-z,]+)\]", step.get("run", "")):
                    assert set(wanted.split(",")) <= extras
            if versions := job.get("strategy", {}).get("matrix", {}).get("python"):
                assert set(versions) == pythons
    assert {f"cp{python.replace('.', '')}-*" for python in pythons} == set(PYPROJECT["tool"]["cibuildwheel"]["build"])
