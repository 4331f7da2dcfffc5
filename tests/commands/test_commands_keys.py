"""The table of keys says what the configuration is; what it can refuse is refused before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from transformers import TrainingArguments

from cofitune_fast.commands.app import COMMANDS
from cofitune_fast.commands.keys import CHOICES, KEYS, SECTIONS, TRAINING, keys_of, training_names
from cofitune_fast.config import Config, ModelSection
from cofitune_fast.training.argument_rules import CHECKPOINT_MINUTES, DEFAULTS, PATIENCE
from cofitune_fast.validation import fields_of, section_of

ROOT = Path(__file__).parents[2]


def text(value) -> str:
    """A default as the table writes it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value) if isinstance(value, tuple) else value)


def test_the_table_has_every_key_of_the_configuration_with_its_default():
    config, found = Config(model=ModelSection(path="")), {}
    for name, kind in fields_of(Config).items():
        section = getattr(config, name)
        if section_of(kind):
            found |= {f"{name}.{key}": text(getattr(section, key)) for key in fields_of(section_of(kind))}
        elif name != "training":
            found[name] = text(section)
    assert {name: key.default for name, key in KEYS.items()} == found
    assert all(key.line for key in [*KEYS.values(), *TRAINING.values()])


def test_the_training_arguments_are_trainers_with_our_defaults():
    own = TrainingArguments(output_dir="unused", use_cpu=True)
    for name, key in TRAINING.items():
        if name not in (PATIENCE, CHECKPOINT_MINUTES, "learning_rate"):
            default = DEFAULTS.get(name, getattr(own, name))
            assert key.default == text(getattr(default, "value", default)), name
    assert {name for name in TrainingArguments.__dataclass_fields__ if not name.startswith("_")} <= training_names()


def test_every_command_that_takes_keys_names_those_it_reads():
    assert set(COMMANDS) - {"push", "report"} <= set(SECTIONS)
    for command in SECTIONS:
        names = {name for name, _ in keys_of(command)}
        assert all(any(name == part or name.startswith(f"{part}.") for name in names) for part in SECTIONS[command])


CASES = [
    (["train", "--modle", "x"], "Unknown key modle in the command line; did you mean model?"),
    (["train", "--outptu", "x"], "did you mean output?"),
    (["train", "--overwirte"], "did you mean overwrite?"),
    (["train", "--data.max_lenght=3"], "did you mean data.max_length?"),
    (["train", "--training.learnig_rate", "1e-4"], "did you mean training.learning_rate?"),
    (["train", "--data.train", "nowhere.jsonl"], "The data file nowhere.jsonl does not exist"),
    (["evaluate", "--model", "./nowhere"], "No model at ./nowhere"),
    (["search", "--config", "nowhere.yaml"], "No configuration at nowhere.yaml"),
    (["run", "-c", "bad.yaml"], "Unknown key modle in bad.yaml; did you mean model?"),
    (["run", "--config=twice.yaml"], "at line 2: the key model stands twice"),
    (["trian"], "Did you mean 'train'?"),
]


def test_what_the_names_tell_is_refused_before_torch_is_imported(tmp_path):
    (tmp_path / "bad.yaml").write_text("modle: x\n")
    (tmp_path / "twice.yaml").write_text("model: a\nmodel: b\n")
    code = (
        "import sys\nfrom cofitune_fast import cli\n"
        f"for arguments in {[arguments for arguments, _ in CASES]!r}:\n"
        "    sys.argv = ['cofitune', *arguments]\n"
        "    try:\n        cli.main()\n"
        "    except SystemExit as end:\n        assert end.code == 2, arguments\n"
        "    print('=' * 9, file=sys.stderr)\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT), "PATH": ""})
    assert done.returncode == 0, done.stderr
    for (arguments, words), shown in zip(CASES, done.stderr.split("=" * 9), strict=False):
        assert words in " ".join(shown.split()) and "Traceback" not in shown, arguments


@pytest.mark.parametrize("arguments", [["train", "-h"], ["train", "--help"], ["train"]])
def test_the_help_of_a_command_lists_its_keys(command_line, arguments):
    _, out, err = command_line(*arguments)
    shown = " ".join([*out.split(), err])
    for words in ("--overwrite", "--data.max_length longest row in tokens [512]", "--output the folder",
                  "--training.learning_rate", "--anchor.weight"):
        assert words in shown, words
    assert "--search.space" not in shown


@pytest.mark.parametrize(("typed", "offered"), [
    ("cofitune tr", ["train"]),
    ("cofitune train --ov", ["--overwrite"]),
    ("cofitune train --model base --anchor.te", ["--anchor.texts", "--anchor.temperature"]),
])
def test_the_shell_is_offered_commands_options_and_keys(typed, offered, command_line, monkeypatch):
    monkeypatch.setenv("_COFITUNE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    assert command_line()[:2] == (0, "\n".join(offered) + "\n")


def test_the_values_of_keys_that_have_few_are_the_configurations():
    found = {}
    for name, kind in fields_of(Config).items():
        inside = {f"{name}.{key}": one for key, one in fields_of(section_of(kind)).items()} if section_of(kind) else {}
        for key, one in (inside or {name: kind}).items():
            one = next((part for part in (one, *get_args(one)) if get_origin(part) is Literal), None)
            if one is not None:
                found[key] = {choice for part in get_args(one) for choice in (get_args(part) or (part,))}
    assert {key: set(values) for key, values in CHOICES.items()} == {
        key: values for key, values in found.items() if key != "mask.preset"}
