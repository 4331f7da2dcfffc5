"""Settings that reduce memory and time: the section `memory:` of the configuration."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..errors import CofituneError
from ..models.loading import cache_folder
from ..validation import check_choices


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

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    prefix_cache: Literal["auto", "off"] = "auto"
    prefix_cache_limit: str = "20GiB"
    prefix_weights: Literal["device", "host"] = "device"
    packing: Literal["auto", "on", "off"] = "auto"
    gradient_release: Literal["off", "exact", "lagged"] = "off"
    optimizer_states: Literal["device", "host"] = "device"

    def __post_init__(self) -> None:
        check_choices(self, "memory")


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
    named = os.environ.get("COFITUNE_PREFIX_CACHE", "").strip()
    return Path(named) if named else cache_folder() / "prefix"
