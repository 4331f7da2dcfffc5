"""kernels/ is found wherever the package is: installed, in place or copied, or in a checkout; why it may not run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch

from cofitune_fast.ops import triton

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.stem for path in (ROOT / "kernels").glob("*.py"))
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def python(*arguments: str, folder: Path, **environment: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True,
                          env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "COFITUNE_NATIVE": "0",
                               "COFITUNE_CUDA": "0", **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_from(folder: Path, preparation: str = "") -> Path:
    """The folder of the kernel modules that a fresh process loads."""
    code = (f"{preparation}\nfrom cofitune_fast.ops import triton\n"
            f"print(*[triton.kernel(name).__file__ for name in {MODULES}], sep='\\n')")
    files = [Path(line) for line in python("-c", code, folder=folder).splitlines()]
    assert [file.stem for file in files] == MODULES and len({file.parent for file in files}) == 1
    return files[0].parent


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what an installation reads, so that none of its traces stay here."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("cofitune_fast", "kernels", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@needs_triton
def test_in_a_checkout(checkout):
    assert loaded_from(checkout) == checkout / "kernels"


@needs_triton
def test_installed(checkout, tmp_path):
    python("setup.py", "-q", "build", "--build-base", str(tmp_path / "build"), "--build-lib", str(tmp_path / "lib"),
           folder=checkout)
    assert loaded_from(tmp_path / "lib") == tmp_path / "lib" / "cofitune_fast" / "kernels"


@needs_triton
def test_installed_in_place(checkout, tmp_path):
    python("setup.py", "-q", "editable_wheel", "--dist-dir", str(tmp_path), folder=checkout)
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(tmp_path / "site")
    activate = (  # in place of the installation that these tests may run on, whose finder has the same name
        "import site, sys\n"
        "sys.meta_path[:] = [finder for finder in sys.meta_path if '__editable__' not in str(finder)]\n"
        "for name in [name for name in sys.modules if name.startswith('__editable__')]: del sys.modules[name]\n"
        f"sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        f"site.addsitedir({str(tmp_path / 'site')!r})"
    )
    assert loaded_from(tmp_path, activate) == checkout / "kernels"


# The Hugging Face package `kernels`, for which transformers and bitsandbytes probe, is not our folder. -S: nothing that
# is installed here is seen, so that both situations can be made.
PROBE = """
import importlib.util, cofitune_fast
try:
    from kernels import get_kernel
except ModuleNotFoundError:
    get_kernel = None
print(importlib.util.find_spec('kernels') is not None, get_kernel)
"""


@pytest.mark.parametrize("start", [["-S", "-c"], ["-S", "-m", "timeit", "-n1", "-r1"]], ids=["-c", "-m"])
def test_from_the_root_the_folder_is_not_seen_as_the_package_of_its_name(start):
    assert python(*start, PROBE, folder=ROOT).splitlines()[0] == "False None"


@pytest.fixture
def hugging_face(tmp_path) -> Path:
    """A folder for sys.path with a package `kernels` in it."""
    (tmp_path / "site" / "kernels").mkdir(parents=True)
    (tmp_path / "site" / "kernels" / "__init__.py").write_text("__version__ = '1.0'\nget_kernel = 'theirs'\n")
    return tmp_path / "site"


def test_from_the_root_an_installed_package_of_its_name_is_found(hugging_face):
    code = f"import sys; sys.path.append({str(hugging_face)!r})\n{PROBE}"
    assert python("-S", "-c", code, folder=ROOT).strip() == "True theirs"


def test_a_package_that_has_been_imported_before_stays(hugging_face):
    code = f"import sys; sys.path.append({str(hugging_face)!r}); import kernels\n{PROBE}"
    assert python("-S", "-c", code, folder=ROOT).strip() == "True theirs"


def test_a_users_own_folder_of_that_name_stays(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "mine.py").touch()
    code = "import cofitune_fast, kernels.mine; print(kernels.mine.__name__)"
    assert python("-S", "-c", code, folder=tmp_path, PYTHONPATH=str(ROOT)).strip() == "kernels.mine"


@pytest.mark.skipif("kernels" in importlib.metadata.packages_distributions(), reason="the package is installed here")
def test_from_the_root_transformers_sees_no_package_of_its_name():
    code = ("import cofitune_fast\nfrom transformers.utils import import_utils\n"
            "print(import_utils._is_package_available('kernels'), import_utils.is_kernels_available())")
    assert python("-c", code, folder=ROOT).strip() == "(False, None) False"


@needs_triton
def test_from_the_root_our_own_kernels_load():
    assert loaded_from(ROOT) == ROOT / "kernels"


def test_the_ops_load_without_triton():
    code = "import sys, cofitune_fast.ops; print('triton' in sys.modules)"
    assert python("-c", code, folder=ROOT).strip() == "False"


@pytest.fixture
def fresh_load():
    triton.load_error.cache_clear()
    yield
    triton.load_error.cache_clear()


def test_a_missing_triton_is_explained(fresh_load, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert triton.load_error() == "triton is not installed; pip install 'triton>=3.4'"


def test_a_missing_device_is_explained(fresh_load, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(triton, "_interpreted", lambda: False)
    assert triton.load_error() == "no CUDA device is there"
    assert triton.devices() == ("cuda",)


@pytest.mark.parametrize(("module", "reason"), [
    (types.SimpleNamespace(__version__="3.3.1"), "triton 3.3.1 is too old; pip install 'triton>=3.4'"),
    (types.SimpleNamespace(__version__="3.10.0+git1"), None),
    (None, "triton does not load (import of triton halted; None in sys.modules)"),
])
def test_a_triton_of_no_use_is_explained(fresh_load, monkeypatch, module, reason):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "triton", module)
    assert triton.load_error() == reason
