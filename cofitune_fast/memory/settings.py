"""Settings that reduce memory and time: the section `memory:` of the configuration."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path

from ..errors import CofituneError
from ..models.loading import cache_folder

CHOICES = {
    "prefix_cache": ("auto", "off"),
    "prefix_weights": ("device", "host"),
    "packing": ("auto", "on", "off"),
    "gradient_release": ("off", "exact", "lagged"),
    "optimizer_states": ("device", "host"),
}


@dataclass(frozen=True)
class MemorySettings:
    """The section `memory:`.

    prefix_cache: "auto" stores the states at the first trained layer's input on disk, unless they are random.
    prefix_cache_limit: size that all such caches may take together.
    prefix_weights: "host" moves the layers below the region off the device once all their states are cached.
    packing: "auto" packs rows with common beginnings if that saves a tenth of the tokens.
    gradient_release: update each matrix as soon as its gradient is made, with the clip factor of this step ("exact", a
        second backward) or of the previous one ("lagged").
    optimizer_states: "host" keeps and updates them on the host.
    """

    prefix_cache: str = "auto"
    prefix_cache_limit: str = "20GiB"
    prefix_weights: str = "device"
    packing: str = "auto"
    gradient_release: str = "off"
    optimizer_states: str = "device"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, known = getattr(self, field.name), CHOICES.get(field.name)
            if known and value not in known:
                raise CofituneError(f"memory.{field.name} is {value!r}; choose one of {', '.join(known)}.")


def parse_size(text: str | int, where: str) -> int:
    """Parse a size such as "20GiB", "24 GB" or "500MiB" to bytes. A bare number is bytes. where: the setting's name.

    Raises:
        CofituneError: the text is not a size above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt]?)(i?)b)?", str(text).strip(), re.IGNORECASE)
    size = 0
    if match:
        number, prefix, binary = match.groups()
        size = int(float(number) * (1024 if binary else 1000) ** " kmgt".index((prefix or " ").lower()))
    if not 0 < size < 2**63:
        raise CofituneError(f"{where} is {text!r}; write a size such as 20GiB, 24GB or 500MiB.")
    return size


def prefix_cache_folder() -> Path:
    """Folder of all prefix caches: COFITUNE_PREFIX_CACHE, else `prefix` in the cache folder."""
    named = os.environ.get("COFITUNE_PREFIX_CACHE")
    return Path(named) if named else cache_folder() / "prefix"
