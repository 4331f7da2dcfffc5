"""README and docs are run: each Python block and each command of a page, in order, on a tiny model.

A block that is not run has `<!-- not run: REASON -->` on the line before it. YAML blocks must be configurations; one
that begins with `# NAME.yaml` is that file for the rest of the page.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib

import pytest
from docs_pages import LANGUAGES, PAGES, ROOT, blocks_of, make_workspace

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
FOLDERS = "benchmarks|tests|examples|csrc|docs|kernels|cofitune_fast"
ANCHOR = ["--anchor.texts", "8", "--anchor.tokens", "6"]
SPACE = ["--search.space", "[{layers: ['25%-75%', '50%-100%'], roles: [ffn]}]"]
MOVING = ["--training.warmup_steps", "0"]  # on so few rows the first rung is one step
# What makes a command small enough for a test, by command and configuration.
SMALLER = {
    ("train", None): ANCHOR,
    ("train", "my-run.yaml"): ANCHOR,
    ("run", None): [*ANCHOR, *SPACE, *MOVING],
    ("search", None): [*ANCHOR, *SPACE, *MOVING],
    ("compare", "examples/comparison.yaml"): [
        "--compare.methods", "[region]", "--compare.learning_rates", "{region: [1.0e-3]}", "--compare.seeds", "[1]",
        "--training.num_train_epochs", "1", "--versatility.drift_rows", "2"],
    ("compare", "methods.yaml"): ["--versatility.drift_rows", "2"],
}  # fmt: skip
RUN = [page for page in PAGES if any(not block.reason and block.language in ("python", "bash", "yaml")
                                     for block in blocks_of(page))]
NAMES = [str(page.relative_to(ROOT)) for page in RUN]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("docs"))


@pytest.fixture
def workspace(prepared, tmp_path, monkeypatch, tmp_path_factory):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COFITUNE_CACHE", str(prepared / "cache"))
    return tmp_path


def test_every_block_says_its_language():
    wrong = [block.place for page in PAGES for block in blocks_of(page) if block.language not in LANGUAGES]
    assert not wrong, f"Give these blocks one of {sorted(LANGUAGES)}: {wrong}"


def test_a_mark_stands_directly_before_a_block():
    for page in PAGES:
        marks = len(re.findall(r"^<!-- not run: .* -->$", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert marks == sum(block.reason is not None for block in blocks_of(page)), page


@pytest.mark.parametrize("page", RUN, ids=NAMES)
def test_the_blocks_of_a_page_run_in_order(page, workspace, capsys):
    names: dict[str, object] = {"__name__": "__main__"}
    _leave_to_the_page(page, workspace)
    for block in blocks_of(page):
        if block.reason:
            continue
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, block.place, "exec"), names)
        elif block.language == "yaml":
            _check_configuration(block, workspace)
        elif block.language == "bash":
            for command in block.commands:
                _run(shlex.split(command, comments=True), block.place)


def _leave_to_the_page(page, workspace):
    """What a page makes itself is not there before: the delta of runs/one, and the report of runs/first."""
    commands = [command for block in blocks_of(page) if block.language == "bash" for command in block.commands]
    if any("cofitune train" in command and command.endswith("--output runs/one") for command in commands):
        shutil.rmtree(workspace / "runs" / "one")
    if any(re.match(r"cofitune (run|search) --config run.yaml", command) for command in commands):
        shutil.rmtree(workspace / "runs" / "first")


def _check_configuration(block, workspace):
    from cofitune_fast.config import load_config

    named = re.match(r"# ([\w-]+\.yaml)\n", block.text)
    file = workspace / (named[1] if named else "block.yaml")
    file.write_text(block.text, encoding="utf-8")
    load_config(file)


def _run(words, place):
    program, *arguments = words
    if program == "cofitune":
        _run_cofitune(arguments, place)
    elif program == "make":
        assert set(arguments) <= TARGETS, f"{place}: the Makefile has no target {arguments}"
    elif words[:2] == ["pip", "install"]:
        wanted = re.fullmatch(r"\.\[([\w,]+)\]", arguments[1])
        assert wanted and set(wanted[1].split(",")) <= set(EXTRAS), f"{place}: pyproject.toml lacks one of {words}"
    else:
        pytest.fail(f"{place}: nothing here runs {program}; mark the block with <!-- not run: REASON -->")


def _run_cofitune(arguments, place):
    from typer.testing import CliRunner

    from cofitune_fast.cli import app

    config = arguments[arguments.index("--config") + 1] if "--config" in arguments else None
    small = SMALLER.get((arguments[0], config), SMALLER.get((arguments[0], None), []))
    result = CliRunner().invoke(app, [*arguments, *small])
    assert result.exit_code == 0, f"{place}: cofitune {shlex.join(arguments)}\n{result.output}\n{result.exception!r}"


def test_what_docs_name_is_there():
    """Files in backticks, and targets of make."""
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        text = page.read_text(encoding="utf-8")
        for path in re.findall(rf"`((?:{FOLDERS})/[a-z\d_./-]+\.\w+)", text):
            assert (ROOT / path).exists(), f"{page.relative_to(ROOT)} names {path}, which is not there"
        for target in re.findall(r"`make ([a-z-]+)", text):
            assert target in TARGETS, f"{page.relative_to(ROOT)} names make {target}, which is not in the Makefile"


def test_the_readme_leads_on():
    """Its links lead to files, and to headings that are there; the site's own links are checked by make docs."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http")]
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        assert (ROOT / file).is_file(), link
        headings = re.findall(r"^#+ (.+)$", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in headings]
    for target in ("demo", "test", "check", "docs"):
        assert f"make {target}" in text
