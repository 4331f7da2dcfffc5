"""Show the machine, the versions, and which backend each op uses; or the roles of a model."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import torch
import typer

from ..config import ModelSection
from ..environment import environment
from ..memory.abilities import abilities_line
from ..models.checkpoint import skeleton
from ..models.loading import plain_folder
from ..ops import backends, native
from ..regions import layout_summary
from .app import AsJson, ConfigFile, command, emit, tell
from .setup import read_config

PACKAGES = ("accelerate", "typer", "rich", "pydantic", "matplotlib", "jinja2", "gguf", "bitsandbytes", "safetensors")


@command
def env(context: typer.Context, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show the machine, the versions, and which backend each op uses; with --model FOLDER the roles of its weights."""
    settings = read_config(context, config)
    if settings.model is not None:
        model = describe_model(settings.model)
        emit(model, as_json, lambda: tell("\n".join(model_lines(model))))
        return
    packages = {name: _version(name) for name in PACKAGES}
    content = {"environment": environment(), "ops": backends(), "native": native.load_error() or "available",
               "packages": packages}

    def show() -> None:
        for key, value in content["environment"].items():
            tell(f"{key:15}{value if value is not None else '-'}")
        tell(f"{'native kernels':15}{content['native']}")
        if native.load_error():
            tell(f"{'':15}without them {native.COST_WITHOUT}")
        for op, table in content["ops"].items():
            autos = {"auto": "on CPU tensors", "auto on cuda": "on CUDA tensors"}
            chosen = ", ".join(f"{table[key]} {where}" for key, where in autos.items() if key in table)
            tell(f"\n{op} (auto: {chosen})")
            for backend, state in table.items():
                if backend not in autos:
                    tell(f"  {backend:12}{state}")
        tell("")
        for name, version in packages.items():
            tell(f"{name:15}{version or 'not installed'}")

    emit(content, as_json, show)


def describe_model(section: ModelSection) -> dict[str, Any]:
    """Describe a model from its configuration alone: `layout_summary`, its path, and what saves time and memory with it
    as far as its structure tells.
    """
    location = plain_folder(section.path, section.gguf_file)
    model = skeleton(location, torch.bfloat16, section.roles)
    return {"model": section.path, **layout_summary(model), "speed": abilities_line(model)}


def model_lines(model: dict[str, Any]) -> list[str]:
    """Lines of text for the result of `describe_model`: a table of roles for each kind of layer."""
    again = "" if model["in_order"] else ", which run more than once"
    lines = [f"{model['model']}: model type {model['model_type']}, {model['layers']} layers{again}"]
    for kind in model["kinds"]:
        lines += ["", f"layer{'' if kind['layers'].isdigit() else 's'} {kind['layers']}"]
        lines += [f"  {role:12}{', '.join(weights)}" for role, weights in kind["roles"].items()]
        if kind["no_role"]:
            lines.append(f"  {'no role':12}{', '.join(kind['no_role'])}; frozen unless the region is full")
    together: dict[str, list[str]] = {}
    for name, layers in model["shared"].items():
        together.setdefault(", ".join(map(str, layers)), []).append(name)
    for layers, names in together.items():
        lines += ["", f"shared by the layers {layers}, so that only the region full trains it: {', '.join(names)}"]
    return [*lines, "", model["speed"]]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
