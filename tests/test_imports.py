"""Who may know whom: the rooms' imports, read from the source, and what an import of the package loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cofitune_fast"

# Room (or module beside the rooms) -> what of the package it may import. docs/architecture.md says why.
MAY_IMPORT = {
    "errors": "",
    "leftovers": "",
    "files": "errors leftovers",
    "json_text": "errors files",
    "validation": "errors",
    "yaml_text": "errors",
    "environment": "",
    "signals": "",
    "progress": "",
    "artefacts": "errors files json_text",
    "ops": "errors",
    "models": "errors progress files json_text leftovers",
    "data": "errors files",
    "regions": "errors progress files json_text models",
    "optim": "errors ops regions",
    "importance": "errors progress files json_text ops models data regions",
    "memory": "errors files json_text validation ops models optim regions",
    "scoring": "errors progress files json_text yaml_text ops models data memory",
    "anchor": "errors progress files validation models data",
    "losses": "errors ops models",
    "training": "errors progress files json_text signals models anchor data losses optim regions memory planning",
    "integrations": "errors files models anchor data losses optim regions memory training",
    "trials": "errors files json_text environment artefacts models anchor data importance memory regions scoring "
              "training",
    "search": "errors files json_text validation yaml_text artefacts models regions scoring training trials",
    "methods": "errors files json_text validation artefacts ops losses models anchor data importance optim regions "
               "scoring training trials search",
    "pipeline": "errors files json_text artefacts models anchor importance planning regions scoring training trials "
                "search methods",
    "compare": "errors files json_text artefacts models anchor data regions scoring training trials search methods",
    "analysis": "errors progress files artefacts models data regions scoring",
    "report": "errors files json_text artefacts",
    "config": "errors validation yaml_text ops losses models data anchor importance memory scoring trials search",
    "migration": "errors files json_text validation yaml_text config data models regions training",
    "display": "progress report search",
    "demo": "errors files config",
    "planning": "errors losses ops memory models regions",
    "cli": "commands",
}
TOP = {"commands"}  # knows every room; only the entry point `cli` knows it

# The dependencies of pyproject.toml, torch and transformers, and what these two themselves require.
CORE_THIRD_PARTY = {"torch", "transformers", "numpy", "safetensors", "huggingface_hub", "tqdm", "yaml", "filelock",
                    "jinja2"}
THIRD_PARTY = {
    "report": {"matplotlib", "jinja2", "rich", "numpy"},
    "config": {"pydantic", "yaml", "transformers"},
    "validation": {"pydantic"},  # inside the functions that use it
    "display": {"rich"},
    "migration": {"torch", "yaml"},
    "commands": CORE_THIRD_PARTY | {"typer", "rich"},
    "losses": CORE_THIRD_PARTY | {"liger_kernel"},  # inside the function that uses it
    "training": CORE_THIRD_PARTY | {"accelerate", "wandb"},  # inside the functions that use them
    "integrations": CORE_THIRD_PARTY | {"accelerate"},  # inside the function that uses it
    "methods": CORE_THIRD_PARTY | {"peft"},  # inside the function that uses it
    # each inside the functions that need it
    "scoring": CORE_THIRD_PARTY | {"lm_eval", "datasets", "sacrebleu", "rouge_score", "langdetect", "nltk"},
    "data": CORE_THIRD_PARTY | {"datasets", "pyarrow"},
    "search": CORE_THIRD_PARTY | {"ray"},  # inside the function that uses it
    "models": CORE_THIRD_PARTY | {"gguf", "bitsandbytes", "peft"},  # inside the functions that need them
    "regions": CORE_THIRD_PARTY | {"peft"},  # inside the function that needs it
    "ops": CORE_THIRD_PARTY | {"triton"},  # inside the functions of ops/triton.py
    "artefacts": {"typing_extensions", "pydantic", "pydantic_core"},  # the latter two inside the functions that read
    "errors": set(),
    "files": set(),
    "demo": set(),
}
CORE = ("artefacts", "ops", "models", "data", "regions", "optim", "importance", "losses", "memory", "planning",
        "scoring", "anchor", "training", "integrations", "trials", "search", "methods", "pipeline", "compare",
        "analysis")
EXTRAS = ("matplotlib", "typer", "pydantic", "rich", "gguf", "triton", "bitsandbytes", "ray", "peft", "lm_eval",
          "datasets", "sacrebleu", "rouge_score", "langdetect", "nltk")


def imports(file: Path, package: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Absolute dotted names, in parts, of all that a file imports, wherever in it the import stands."""
    found: list[tuple[str, ...]] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = (*start, *(node.module.split(".") if node.module else ()))
            found += [(*base, alias.name) for alias in node.names] if base == ("cofitune_fast",) else [base]
    return found


def rooms() -> dict[str, list[tuple[Path, list[tuple[str, ...]]]]]:
    found: dict[str, list] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).parts
        found.setdefault(parts[0].removesuffix(".py"), []).append((file, imports(file, ("cofitune_fast", *parts[:-1]))))
    found.pop("__init__")  # loads names when they are first asked for; see the tests below
    return found


ROOMS = rooms()


def known(room: str) -> dict[str, set[Path]]:
    """What of the package a room imports, and in which files."""
    result: dict[str, set[Path]] = {}
    for file, names in ROOMS[room]:
        for name in names:
            if name[0] == "cofitune_fast" and len(name) > 1 and name[1] not in (room, "__version__"):
                result.setdefault(name[1], set()).add(file.relative_to(ROOT))
    return result


def test_the_reader_sees_every_form_of_import(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("import a.b, c\nfrom . import d\nfrom .e import f\nfrom .. import g\nfrom ..h.i import j\n"
                    "def k():\n    from cofitune_fast.l import m\n    import cofitune_fast.n\n")
    assert set(imports(file, ("cofitune_fast", "room"))) == {
        ("a", "b"), ("c",), ("cofitune_fast", "room"), ("cofitune_fast", "room", "e"), ("cofitune_fast", "g"),
        ("cofitune_fast", "h", "i"), ("cofitune_fast", "l"), ("cofitune_fast", "n"),
    }


def test_every_room_has_its_rule():
    assert set(ROOMS) == set(MAY_IMPORT) | TOP


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_what_it_may(room):
    forbidden = {other: files for other, files in known(room).items() if other not in MAY_IMPORT[room].split()}
    assert not forbidden


def test_nobody_but_the_entry_point_imports_the_commands():
    assert [room for room in ROOMS if TOP & set(known(room))] == ["cli"]


def inside_rooms() -> dict[str, set[str]]:
    """Who imports whom among the modules and packages right inside the rooms, such as report.run -> report.style."""
    graph: dict[str, set[str]] = {}
    for room, files in ROOMS.items():
        for file, names in files:
            parts = file.relative_to(PACKAGE).with_suffix("").parts
            if len(parts) == 1 or parts[1] == "__init__":
                continue
            own = ".".join(parts[:2])
            found = {".".join(name[1:3]) for name in names if name[:2] == ("cofitune_fast", room) and len(name) > 2}
            graph.setdefault(own, set()).update(found - {own})
    return {node: others & set(graph) for node, others in graph.items()}


@pytest.mark.parametrize("graph", [
    {room: set(known(room)) for room in ROOMS},
    {room: set(others.split()) for room, others in MAY_IMPORT.items()},
    inside_rooms(),
], ids=["as it is", "as it may be", "inside the rooms"])
def test_there_is_no_circle(graph):
    remaining = dict(graph)
    while remaining:
        free = [room for room, others in remaining.items() if not others & set(remaining)]
        assert free, f"a circle among {sorted(remaining)}"
        for room in free:
            del remaining[room]


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_third_parties(room):
    allowed = THIRD_PARTY.get(room, CORE_THIRD_PARTY) | set(sys.stdlib_module_names) | {"cofitune_fast"}
    strange = {(file.name, name[0]) for file, names in ROOMS[room] for name in names if name[0] not in allowed}
    assert not strange


def test_triton_kernels_know_nobody():
    for file in (ROOT / "kernels").rglob("*.py"):
        strange = {name[0] for name in imports(file, ("kernels",))} - set(sys.stdlib_module_names)
        assert strange <= {"torch", "triton", "kernels"}, file.name


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_alone_loads_no_third_party():
    names = {*EXTRAS, *CORE_THIRD_PARTY}
    assert python(f"import sys, cofitune_fast; print(sorted({names!r} & set(sys.modules)))").strip() == "[]"


def test_the_core_rooms_and_every_public_name_load_without_the_extras():
    # None in sys.modules makes an import fail as if the package were not installed.
    python(
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({EXTRAS!r}))\n"
        f"for room in {(*CORE, 'report', 'demo')!r}:\n"
        "    importlib.import_module('cofitune_fast.' + room)\n"
        "import cofitune_fast\n"
        "assert all(getattr(cofitune_fast, name) is not None for name in cofitune_fast.__all__)\n"
    )
