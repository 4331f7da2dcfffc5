"""Docstrings begin with a verb or a noun: "Of ..." and "What ..." are fragments that only their author understands."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cofitune_fast"
FRAGMENTS = ("Of", "What")


def docstrings(source: str) -> list[str]:
    """All docstrings of a module, also those of its constants: strings that stand alone in a body."""
    bodies = [node.body for node in ast.walk(ast.parse(source))
              if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))]
    return [statement.value.value for body in bodies for statement in body
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)]


def is_fragment(text: str) -> bool:
    return text.split()[:1] != [] and text.split()[0].rstrip(",:;") in FRAGMENTS


def test_the_reader_sees_every_docstring():
    source = ('"""One."""\nN = 1\n"""Two."""\nclass A:\n    """Three."""\n    x: int = 0\n    """Four."""\n'
              '    async def f(self):\n        """Five."""\n        def g():\n            """Six."""\n'
              '        "".join(())\n')
    assert sorted(docstrings(source)) == sorted(["One.", "Two.", "Three.", "Four.", "Five.", "Six."])


@pytest.mark.parametrize(("text", "expected"), [
    ("Of the rows.", True), ("\n    What it\n    gives.", True), ("Of: rows.", True), ("Offset of a row.", False),
    ("Whatever.", False), ("Rows of what is given.", False), ("", False),
])
def test_a_fragment_is_known_by_its_first_word(text, expected):
    assert is_fragment(text) is expected


def test_no_docstring_is_a_fragment():
    found = [(str(file.relative_to(PACKAGE.parent)), text.split("\n")[0]) for file in sorted(PACKAGE.rglob("*.py"))
             for text in docstrings(file.read_text(encoding="utf-8")) if is_fragment(text)]
    assert not found, "begin these with a verb or a noun"
