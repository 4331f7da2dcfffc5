"""Show the machine, the versions, and which backend each op uses."""

from __future__ import annotations

from importlib import metadata

from ..environment import environment
from ..ops import backends, native
from .app import AsJson, command, emit

PACKAGES = ("accelerate", "typer", "rich", "pydantic", "matplotlib", "jinja2", "gguf", "bitsandbytes", "safetensors")


@command
def env(as_json: AsJson = False) -> None:
    """Show the machine, the versions, and which backend each op uses."""
    packages = {name: _version(name) for name in PACKAGES}
    content = {"environment": environment(), "ops": backends(), "native": native.load_error() or "available",
               "packages": packages}

    def show() -> None:
        for key, value in content["environment"].items():
            print(f"{key:15}{value if value is not None else '-'}")
        print(f"{'native kernels':15}{content['native']}")
        if native.load_error():
            print(f"{'':15}without them {native.COST_WITHOUT}")
        for op, table in content["ops"].items():
            autos = {"auto": "on CPU tensors", "auto on cuda": "on CUDA tensors"}
            chosen = ", ".join(f"{table[key]} {where}" for key, where in autos.items() if key in table)
            print(f"\n{op} (auto: {chosen})")
            for backend, state in table.items():
                if backend not in autos:
                    print(f"  {backend:12}{state}")
        print()
        for name, version in packages.items():
            print(f"{name:15}{version or 'not installed'}")

    emit(content, as_json, show)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
