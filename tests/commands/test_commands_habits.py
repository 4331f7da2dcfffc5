"""Habits of all commands: what goes to which stream, statuses, help, loudness, colours, the shell's completion."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest
from commands.test_commands import arguments

from cofitune_fast.commands import printing
from cofitune_fast.commands.app import COMMANDS
from cofitune_fast.commands.outline import outlined
from cofitune_fast.commands.screen import Screen
from cofitune_fast.config import load_config
from cofitune_fast.errors import CofituneError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own_loudness(monkeypatch):
    """Puts the loudness back that a command line sets for its process."""
    monkeypatch.setenv(printing.VERBOSE, "")
    yield
    printing.console.quiet = printing.SILENT


def test_every_command_prints_its_result_alone_on_standard_output(command_line, tiny_run, tmp_path, monkeypatch,
                                                                  own_loudness):
    pytest.importorskip("matplotlib")
    out = Path(tiny_run["output"])
    model, delta = ("--model", tiny_run["model"]), ("--delta", out / "delta")
    quick = {"anchor.weight": 0, "region": "ffn@3", "run.full_sft": "false"}
    job = arguments({**tiny_run, **quick, "output": tmp_path / "job"})
    monkeypatch.setattr("cofitune_fast.demo.settings.demo_config", lambda given: load_config(None, {
        **tiny_run, **quick, "output": str(tmp_path / "job")}))
    compared = ("--compare.methods", "[region]", "--compare.learning_rates", "{region: [1.0e-3]}", "--dry-run")
    lines = {
        "train": arguments({**tiny_run, **quick}), "evaluate": [*arguments(tiny_run), *delta],
        "merge": [*model, *delta, "--output", tmp_path / "merged"], "run": job, "demo": [],
        "search": [*arguments(tiny_run), "--dry-run"], "compare": [*arguments(tiny_run), *compared],
        "importance": arguments(tiny_run), "report": [tmp_path / "job"], "data": arguments(tiny_run), "env": model,
        "analyze": [*arguments({**tiny_run, "output": tmp_path / "analysis"}), *delta],
        "plan": [*model, "--data.max_length", "16", "--region", "ffn@3"],
        "export": [*model, *delta, "--output", tmp_path / "adapter"],
        "init": [*model, "--data.train", tiny_run["data.train"], "--output", tmp_path / "run.yaml"],
        "import-config": [tmp_path / "theirs.yml", "--output", tmp_path / "ours.yaml"],
    }
    (tmp_path / "theirs.yml").write_text("base_model: some/model\nmicro_batch_size: 2\n", encoding="utf-8")
    assert set(lines) == {*COMMANDS} - {"push"}  # which needs a hub: tests/regions/test_regions_hub.py
    for name, line in lines.items():
        status, shown, err = command_line(name, *line, "--json")
        assert status == 0 and isinstance(json.loads(shown), dict), (name, err)
    for name in ("train", "data", "env"):  # the training is finished, which without -q is said on standard error
        status, shown, err = command_line("-q", name, *lines[name])
        assert status == 0 and shown and err == "", (name, err)
    assert "nothing is trained" in command_line("train", *lines["train"])[2]


def test_usage_help_and_version_need_no_heavy_import():
    cases = [(["-V"], 0), (["--version"], 0), (["-h"], 0), (["train", "-h"], 0), (["-h", "evaluate"], 0), ([], 2),
             (["train"], 2), (["-q"], 2), (["trian"], 2), (["--jsn"], 2), (["report", "--jsn"], 2), (["-qv", "env"], 2),
             (["train", "--loss", "crossent"], 2), (["train", "--anchor.weight=much"], 2)]
    code = (
        "import contextlib, io, json, sys\nfrom cofitune_fast import cli\nseen = []\n"
        f"for line in {[line for line, _ in cases]!r}:\n"
        "    sys.argv, out = ['cofitune', *line], io.StringIO()\n"
        "    sys.stderr = io.StringIO()\n"
        "    try:\n        with contextlib.redirect_stdout(out):\n            cli.main()\n"
        "    except SystemExit as end:\n        seen.append((end.code, out.getvalue(), sys.stderr.getvalue()))\n"
        "heavy = sorted({'torch', 'transformers', 'pydantic', 'matplotlib'} & {*sys.modules})\n"
        "print(json.dumps([seen, heavy]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": str(ROOT), "PATH": "", "COLUMNS": "40"})
    seen, heavy = json.loads(done.stdout)
    assert not {"torch", "transformers", "matplotlib"} & {*heavy}
    for (line, expected), (status, out, err) in zip(cases, seen, strict=True):
        assert status == expected and bool(out) == (expected == 0), (line, out, err)
        assert "Traceback" not in err
    help_lines = seen[2][1].splitlines()  # as narrow as click goes: broken lines, nothing cut off
    assert max(map(len, help_lines)) <= 50 and "..." not in seen[2][1].replace("COMMAND [ARGS]...", "")
    assert "Usage: cofitune train" in seen[3][1] and "Usage: cofitune evaluate" in seen[4][1]
    assert seen[8][2] == "cofitune: No such command 'trian'. Did you mean 'train'? `cofitune -h` shows what there is.\n"


def test_the_outline_of_a_command_has_the_options_of_the_command():
    def options(command):
        return [(one.opts, getattr(one, "help", None), getattr(one, "is_flag", False), one.default, one.required)
                for one in command.params]

    for name in COMMANDS:
        module = name.replace("-", "_")
        real = getattr(import_module(f"cofitune_fast.commands.{module}"), module)
        assert options(outlined(name)) == options(real), name
        assert outlined(name).help == real.help


def test_loudness_leaves_warnings_and_adds_libraries(capsys, own_loudness):
    ours, theirs = logging.getLogger("cofitune_fast.somewhere"), logging.getLogger("another")

    def heard(**loudness):
        printing.set_loudness(**loudness)
        with printing.calm():
            ours.setLevel(logging.INFO)
            ours.info("a note")
            ours.warning("a warning")
            printing.console.print("progress")
            warnings.warn_explicit("old", FutureWarning, "/site-packages/other/lib.py", 1)
            theirs.error("noise")
        return capsys.readouterr()

    assert heard(quiet=True, verbose=False) == ("", "a warning\n")
    assert heard(quiet=False, verbose=False) == ("", "a note\na warning\nprogress\n")
    with warnings.catch_warnings(record=True) as seen:
        heard(quiet=False, verbose=True)
    assert [str(one.message) for one in seen] == ["old"]


@pytest.mark.parametrize(("variables", "coloured"), [
    ({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ({"FORCE_COLOR": ""}, False),
])
def test_colours_are_forced_or_forbidden_and_a_file_is_never_a_terminal(monkeypatch, variables, coloured):
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    screen = Screen(file=io.StringIO())
    screen.print("words", style="red")
    assert ("\x1b[31m" in screen.file.getvalue()) == coloured and not screen.is_terminal


def run_shell(code: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a script of bash for which `cofitune` is a command."""
    command = folder / "bin" / "cofitune"
    command.parent.mkdir()
    command.write_text(f'#!/bin/bash\nexec {sys.executable} -m cofitune_fast.cli "$@"\n')
    command.chmod(0o755)
    return subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=folder, env={
        "PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)})


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_options_and_values_and_leaves_files_to_itself(tmp_path):
    done = run_shell("""
        source <(_COFITUNE_COMPLETE=source_bash cofitune)
        complete -p cofitune
        try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); $function cofitune; echo "${COMPREPLY[*]}"; }
        function=$(complete -p cofitune | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        try cofitune tra; try cofitune -q train --over; try cofitune train --loss d; try cofitune train --data.train ""
        cofitune -h | true
        echo "${PIPESTATUS[0]}"
    """, tmp_path)
    complete, *offered = done.stdout.splitlines()
    assert "-o default" in complete and done.stderr == ""
    assert offered == ["train", "--overwrite", "dft", "", "0"]


def test_a_full_disk_is_one_sentence(monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sys.stdout", Full())
    with pytest.raises(CofituneError, match="cannot be written to standard output: No space left on device"):
        printing.tell("a result")
