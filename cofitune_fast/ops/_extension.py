"""Load a compiled extension. A failure is returned as a sentence, not raised."""

from __future__ import annotations

import importlib
from types import ModuleType


def load(name: str, kind: str, interface: int, missing: str, variable: str) -> tuple[ModuleType | None, str | None]:
    """The extension module `cofitune_fast.NAME` and None, or None and the reason why it cannot be used.

    kind: its name in sentences. interface: must equal the number compiled into its bindings. missing: advice for those
    who have not built it. variable: the environment variable that turns a failed build into an error.
    """
    try:
        module = importlib.import_module(f"cofitune_fast.{name}")
    except ModuleNotFoundError:
        return None, (
            f"the {kind} extension is not built; {missing} reinstall with {variable}=1, which shows the compiler's "
            "message"
        )
    except ImportError as error:
        return None, f"the {kind} extension does not load ({error}); reinstall with {variable}=1"
    if interface != module.INTERFACE:
        return None, (
            f"the {kind} extension was built from other sources (interface {module.INTERFACE}, expected {interface}); "
            "reinstall, or run python setup.py build_ext --inplace in the checkout"
        )
    return module, None
