"""The data the package carries: a speciality a small model can learn in a minute, and a versatility suite.

    data_folder() / "speciality" / "train.jsonl"                       prompt, completion
    data_folder() / "versatility" / "valid" / "knowledge" / ...jsonl    the three groups, valid and test

data/README.md says what each file is; the generators are in the checkout's examples/demo_data/.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def data_folder() -> Path:
    """The folder of the embedded data files, wherever the package is installed."""
    return Path(str(resources.files(__name__) / "data"))


__all__ = ["data_folder"]
