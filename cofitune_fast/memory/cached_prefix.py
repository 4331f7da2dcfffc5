"""A frozen prefix with a cache of its output states: a forward reads them, or computes and stores them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..models.sharded import all_ranks
from ..regions import Region
from .abilities import prefix_abilities
from .prefix import FrozenPrefix
from .prefix_cache import PlacedRow, PrefixCache, why_not
from .settings import MemorySettings, parse_size, prefix_cache_folder


@dataclass(frozen=True, eq=False)
class CachedPrefix:
    """Context that puts the prefix's hooks on the model. At its end it removes them and closes the cache."""

    prefix: FrozenPrefix
    cache: PrefixCache

    def __enter__(self) -> CachedPrefix:
        self.prefix.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.prefix.__exit__(*exception)
        self.cache.close()

    @contextmanager
    def forward(
        self, call: Mapping[str, Tensor], rows: Sequence[PlacedRow], reading: Future[Tensor | None] | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Context that yields the arguments for the model's forward, in place of `call`.

        With cached states the forward starts above the prefix. Otherwise it runs in full, and the prefix's states are
        stored. The outputs are the same to the bit.

        call: the arguments, with `input_ids` [batch, tokens]. rows: the rows of the batch and their places. reading:
        their states, if they were requested before.
        """
        inputs = call["input_ids"]
        states = self.cache.states(rows, tuple(inputs.shape)) if reading is None else reading.result()
        # Each rank holds a part of every layer, so either all ranks run the prefix or none does.
        if all_ranks(states is not None):
            with self.prefix.replaced_by(states.to(inputs.device, non_blocking=True)):
                yield dict(call)
            return
        self.prefix.bring_back()  # the weights are on the host if every row was cached, but a row is damaged
        with self.prefix.keeping() as kept:
            yield dict(call)
        self.cache.keep(rows, kept[0])


def open_prefix(
    model: nn.Module, region: Region, digests: Mapping[str, str], memory: MemorySettings, tokens: int,
    settings: Any = None,
) -> tuple[CachedPrefix | None, str | None]:
    """Open the cache of the layers below `region`.

    Returns (prefix with its cache, None); or (None, the reason as a sentence); or (None, None) if the cache is switched
    off or no layer lies below the region.

    digests: digests of the frozen tensors. tokens: number of tokens of the rows to cache. settings: training arguments,
    see `why_not`.
    """
    prefix = FrozenPrefix.of(model, region)
    if memory.prefix_cache == "off" or prefix is None or prefix.layer == 0:
        return None, None
    if (reason := why_not(model, prefix, settings)) is not None:
        return None, reason
    able = prefix_abilities(model, prefix.layer)
    if not able.cache:
        return None, able.cache.why_not
    prefix.width, prefix.dtype = able.width, able.dtype
    limit = parse_size(memory.prefix_cache_limit, "memory.prefix_cache_limit")
    wanted = tokens * math.prod(prefix.width) * prefix.dtype.itemsize
    if wanted > limit:
        return None, (f"these rows need {wanted / 2**30:.1f} GiB, and memory.prefix_cache_limit is "
                      f"{memory.prefix_cache_limit}")
    return CachedPrefix(prefix, PrefixCache.open(prefix_cache_folder(), model, prefix, digests, limit)), None
