"""Plugin of pytest for `make sanitize`: puts the extension that a sanitizer watches in the place of the usual one."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "build" / os.environ["COFITUNE_SANITIZER"]

(_FILE,) = FOLDER.glob("cofitune_fast/_native.*so")
_SPEC = importlib.util.spec_from_file_location("cofitune_fast._native", _FILE)
native = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(native)
sys.modules[_SPEC.name] = native
