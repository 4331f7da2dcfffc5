"""Data of the package: a speciality that a small model learns in a minute, and a versatility suite.

    data_folder() / "speciality" / "train.jsonl"                       prompt, completion
    data_folder() / "versatility" / "valid" / "knowledge" / ...jsonl    three groups, valid and test

data/README.md describes each file. The generators are in the repository's examples/demo_data/.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def data_folder() -> Path:
    """Return the folder of the embedded data files, wherever the package is installed."""
    return Path(str(resources.files(__name__) / "data"))


__all__ = ["data_folder"]
