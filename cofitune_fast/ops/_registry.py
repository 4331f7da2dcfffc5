"""Dispatch of ops to backends. Each op has an eager reference and may have faster backends.

`auto` takes the first backend that serves the device and can run, and falls back to the reference. A backend that is
asked for by name either runs, or raises the reason why it cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import CofituneError

NAMES = ("auto", "reference", "cpu", "triton", "cuda")


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    run: takes the op's own arguments. devices: the kinds of device it serves; `auto` chooses it only for the first, and
    for the others it must be asked for by name. why_not: returns the reason why it cannot run here, or None.
    """

    run: Callable[..., Any] | None
    devices: tuple[str, ...]
    why_not: Callable[[], str | None]

    def refusal(self, device: torch.device) -> str | None:
        reason = self.why_not()
        if reason is None and device.type not in self.devices:
            return f"it serves {' and '.join(self.devices)} tensors and these are on {device}"
        return reason


@dataclass
class Operation:
    """One op: its eager reference, which runs on every device, and its other backends in order of preference."""

    name: str
    reference: Callable[..., Any]
    backends: dict[str, Backend] = field(default_factory=dict)

    def add(self, name: str, run: Callable[..., Any] | None, devices: tuple[str, ...],
            why_not: Callable[[], str | None]) -> None:
        self.backends[name] = Backend(run, devices, why_not)

    def lack(self, name: str, reason: str) -> None:
        """Record that this version does not have a backend, with the reason."""
        self.add(name, None, (name,), lambda: reason)

    def choose(self, backend: str, device: torch.device) -> str:
        """The name of the backend that runs for tensors on `device`.

        Raises:
            CofituneError: `backend` is unknown, or was asked for by name and cannot run.
        """
        if backend == "auto":
            usable = (name for name, entry in self.backends.items()
                      if entry.refusal(device) is None and device.type == entry.devices[0])
            return next(usable, "reference")
        if backend == "reference":
            return backend
        if backend not in NAMES:
            raise CofituneError(f"{self.name}: backend {backend!r} is unknown; choose one of {', '.join(NAMES)}.")
        reason = self.backends[backend].refusal(device)
        if reason is not None:
            raise CofituneError(
                f"{self.name}: the backend {backend!r} cannot run ({reason}); use backend='auto' or 'reference'."
            )
        return backend

    def run(self, backend: str, device: torch.device, *args: Any) -> Any:
        chosen = self.choose(backend, device)
        run = self.reference if chosen == "reference" else self.backends[chosen].run
        assert run is not None, "what cannot run is not chosen"
        return run(*args)

    def table(self) -> dict[str, str]:
        """Backend -> "available" or the reason why it cannot run, for `cofitune env`.

        "auto" -> the backend chosen for CPU tensors. "auto on cuda" -> the one for CUDA tensors, if there is a device.
        """
        rows = {"reference": "available"}
        rows |= {name: entry.why_not() or "available" for name, entry in self.backends.items()}
        rows["auto"] = self.choose("auto", torch.device("cpu"))
        if torch.cuda.is_available():
            rows["auto on cuda"] = self.choose("auto", torch.device("cuda"))
        return rows


OPERATIONS: dict[str, Operation] = {}


def operation(name: str, reference: Callable[..., Any]) -> Operation:
    OPERATIONS[name] = Operation(name, reference)
    return OPERATIONS[name]


def backends() -> dict[str, dict[str, str]]:
    """For each op: backend -> "available" or the reason why it cannot run.

    "auto" -> the backend chosen for CPU tensors. "auto on cuda" -> the one for CUDA tensors, if there is a device.
    """
    return {name: entry.table() for name, entry in OPERATIONS.items()}
