"""The public names: what is loaded lazily, what type checkers see and what __all__ lists are the same."""

from __future__ import annotations

import ast
from pathlib import Path

import cofitune_fast

SOURCE = Path(cofitune_fast.__file__)


def names_for_type_checkers():
    """{name: module} of the imports under `if TYPE_CHECKING`."""
    (block,) = [node for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body
                if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {alias.name: node.module for node in block.body for alias in node.names}


def test_type_checkers_see_what_is_loaded_lazily():
    lazily = {**cofitune_fast._HOMES, **dict.fromkeys(cofitune_fast._ROOMS)}
    assert names_for_type_checkers() == lazily
    assert set(cofitune_fast.__all__) == {*lazily, "__version__"}
    assert len(cofitune_fast.__all__) == len(set(cofitune_fast.__all__))


def test_every_public_name_is_there_and_documented():
    for name in cofitune_fast.__all__:
        value = getattr(cofitune_fast, name)
        assert name == "__version__" or value.__doc__, f"{name} has no docstring"


def test_the_package_says_that_it_is_typed():
    assert (SOURCE.parent / "py.typed").is_file()
    assert '"py.typed"' in (SOURCE.parents[1] / "setup.py").read_text(encoding="utf-8")
