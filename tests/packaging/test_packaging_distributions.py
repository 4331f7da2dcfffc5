"""What is published: a source distribution with all it needs and no more, and wheels that work away from a checkout."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Runs one hook of the build backend, as an isolated build does: only setuptools and pybind11 are there.
HOOK = """
import sys
for name in ("torch", "transformers", "numpy", "safetensors", "cofitune_fast"):
    sys.modules[name] = None
from setuptools import build_meta
build_meta.{hook}({folder!r})
"""


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    cleaned = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=folder, env=cleaned | environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def build(hook: str, source: Path, folder: Path, **environment: str) -> Path:
    run(sys.executable, "-c", HOOK.format(hook=hook, folder=str(folder)), folder=source, **environment)
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The source distribution, unpacked; made from a copy, so that no trace of the build stays here."""
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "runs", "demo-run", "__pycache__", "*.so", "*.egg-info", ".*_cache"))
    archive = build("build_sdist", folder / "checkout", folder / "dist")
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


def test_the_source_distribution_holds_what_a_build_reads_and_nothing_else(unpacked):
    def files(root: Path, *folders: str) -> set[str]:
        return {path.relative_to(root).as_posix() for folder in folders for path in (root / folder).rglob("*")
                if path.is_file() and path.suffix not in (".pyc", ".so")}

    folders = ("cofitune_fast", "csrc", "kernels")
    assert files(unpacked, *folders) == files(ROOT, *folders)
    others = {path.name for path in unpacked.iterdir()} - set(folders)
    assert others == {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.py",
                      "setup.cfg", "cofitune_fast.egg-info"}


@pytest.mark.parametrize("native, backend", [("0", "reference"), ("1", "cpu")])
def test_a_wheel_is_installed_in_a_clean_environment_and_used(unpacked, tmp_path, native, backend):
    wheel = build("build_wheel", unpacked, tmp_path / "dist", COFITUNE_NATIVE=native, COFITUNE_CUDA="0")
    inside = {info.filename: info.file_size for info in zipfile.ZipFile(wheel).infolist()}
    assert {name.split("/")[0].partition("-")[0] for name in inside} == {"cofitune_fast"}  # and its .dist-info
    libraries = [size for name, size in inside.items() if name.endswith(".so")]
    assert len(libraries) == int(native) and all(size < 3_000_000 for size in libraries), "with its symbols?"

    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "clean", folder=tmp_path)
    python = tmp_path / "clean" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel,
        folder=tmp_path)
    # torch and the other dependencies are those of the tests; a .pth file does not run that folder's own .pth files,
    # and so the installation under test there, which may be one in place, is not seen.
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=tmp_path).strip()
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    said = run(python, "-P", ROOT / "tests" / "packaging" / "use_installed.py", backend, folder=tmp_path)
    assert f"ops: {backend}" in said


def test_the_index_shows_a_readme_whose_links_lead_somewhere(unpacked):
    rewrite = runpy.run_path(str(ROOT / "setup.py"))["readme_for_an_index"]
    text = "![A\npicture](docs/images/a.png) [page](docs/a.md#b), [up](#top) [out](https://example.org/x) `[a](b c)`"
    assert rewrite(text, "1.2", None) == text
    assert rewrite(text, "1.2", "https://host/owner/name/") == (
        "![A\npicture](https://host/owner/name/raw/v1.2/docs/images/a.png) "
        "[page](https://host/owner/name/blob/v1.2/docs/a.md#b), [up](#top) [out](https://example.org/x) `[a](b c)`")
    about = BytesParser().parsebytes((unpacked / "PKG-INFO").read_bytes())
    assert about["Description-Content-Type"] == "text/markdown" and "# cofitune_fast" in about.get_payload()
