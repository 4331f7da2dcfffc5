"""Docstrings begin with a verb or a noun: "Of ..." and "What ..." are fragments that only their author understands."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cofitune_fast"
FRAGMENTS = ("Of", "What")

# Beginnings of docstrings that are still to be rewritten. Delete an entry with its docstring; add none.
TO_BE_REWRITTEN: set[str] = {
    # cli.py
    "What all commands share: a CofituneError is one line and sta",
    # compare/checks.py
    "What can be wrong with a comparison, said before anything is",
    # compare/comparison.py
    "What the runs depend on besides their recipes, see `Comparis",
    # compare/draws.py
    "What is reported of a point, larger is better: the figures o",
    "What no training changes about the scores: tasks, metrics, n",
    # compare/forecast.py
    "What the runs of a comparison will cost, in floating-point o",
    "Of all `runs`, each training once; `trained`: digests of tho",
    # compare/head.py
    "What every report of a comparison tells of its run.",
    # compare/pipeline.py
    "What decides a run's results; a folder holds the results of",
    "What the folder's results depend on; the journal refuses ano",
    "What the final runs will take, in operations of full SFT: a",
    # compare/recipe.py
    "Of what is trained, sha256 (hex): the sweep and the interpol",
    # compare/run_method.py
    "Of `Workbench.train`; what is measured on the base is measur",
    "Of the units that are trained, measured once per folder, tas",
    # compare/runs.py
    "Of the runs that wait, those that can decide most, in order;",
    "Of what is trained and scored, whatever the method is called",
    # compare/verdicts.py
    "What a comparison says of its methods: at their best rates,",
    # config.py
    "What the run does to need less memory and time; docs/memory.",
    "What `cofitune plan` cannot know: response tokens per row (e",
    "Of `Workbench.importance`.",
    # demo/speciality.py
    "What a direction says; every field holds the code of its par",
    # display/__init__.py
    "What is shown of a pipeline or a search while it runs: a liv",
    # display/space.py
    "What `cofitune search --dry-run` prints: the nodes as a tree",
    # memory/objectives.py
    "What the next-token distributions at chosen tokens are to be",
    "Of a sum of losses by the logits z [n, vocabulary]: `factors",
    # optim/masked_adamw.py
    "What belongs to a saved state because nobody else has it.",
    # report/analysis_words.py
    "What an analysis says in sentences and rows, from its figure",
    # report/comparison_page.py
    "What the page of a comparison shows: its pictures by name, a",
    # report/html.py
    "What every page's head needs: its style sheet, and the colou",
    # report/plane.py
    "What the Spec-Vers planes of methods and of searched regions",
    # report/search_cost.py
    "What each searched region cost, in the order of training, an",
    # report/search_view.py
    "What a search without any method has to say: its choice, and",
    "What the template shows of the search, every number as text;",
    # search/budget.py
    "What a search costs in floating-point operations, and how mu",
    "Of a region of `trained` parameters from layer `lowest` up,",
    "Of the validation part once.",
    "Of texts such as \"2 full-sft\", \"1.5h\", \"5e6 tokens\", \"3M tok",
    # search/journal.py
    "What one search has finished: `records`, each with its \"kind",
    "What changed, down to the key: \"training.learning_rate was 0",
    # search/ledger.py
    "What a search has done so far: its journal, the per-item sco",
    # search/nodes.py
    "What a search knows of a region it tried: its scores after e",
    "Of its training budget that the node got.",
    # search/results.py
    "What a search found, and how it stands in search.json and re",
    # search/run.py
    "What the nodes depend on; the budget may be raised later.",
    "What the nodes depend on, besides the base and the data.",
    "Of a job, where `seen` has the share of the rows whose state",
    # search_command.py
    "What the nodes need, wherever they run; search.training goes",
    # training/callbacks.py
    "What one rank decides after a step, all do: saving and stopp",
    # training/rates.py
    "Of SmolLM2-135M, whose hidden size is WIDTH: full SFT's best",
    # training/run.py
    "What a training run did and cost. `peak_memory` says of what",
    # training/trainer.py
    "Of numbers that stay on the device until somebody asks.",
    "What of a batch the model's forward takes.",
    "What the model's forward takes; the frozen prefix comes from",
    # trials/priors.py
    "What some steps along the sign of the gradient take off the",
    # trials/setup.py
    "What a process needs to try regions: as plain data, so that",
    # trials/workbench.py
    "What a scoring of `split` computes, see `scoring.suite_token",
}


def docstrings(source: str) -> list[str]:
    """All docstrings of a module, also those of its constants: strings that stand alone in a body."""
    bodies = [node.body for node in ast.walk(ast.parse(source))
              if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))]
    return [statement.value.value for body in bodies for statement in body
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)]


def is_fragment(text: str) -> bool:
    return text.split()[:1] != [] and text.split()[0].rstrip(",:;") in FRAGMENTS


def beginning(text: str) -> str:
    return " ".join(text.split())[:60].rstrip()


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
    found = {beginning(text): file.relative_to(PACKAGE.parent) for file in sorted(PACKAGE.rglob("*.py"))
             for text in docstrings(file.read_text(encoding="utf-8")) if is_fragment(text)}
    new = {text: str(file) for text, file in found.items() if text not in TO_BE_REWRITTEN}
    assert not new, "begin these with a verb or a noun"
    assert not TO_BE_REWRITTEN - set(found), "these are rewritten: delete them from TO_BE_REWRITTEN"
