"""A frozen prefix with the cache of what it gives: forwards that read its states, or compute and keep them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..models.sharded import all_ranks
from ..regions import Region
from .prefix import FrozenPrefix
from .prefix_cache import PlacedRow, PrefixCache, why_not
from .settings import MemorySettings, parse_size, prefix_cache_folder


@dataclass(frozen=True, eq=False)
class CachedPrefix:
    """As a context it puts the prefix's hooks on the model, and takes them off and closes the cache at its end."""

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
        """Yields what the model's forward takes instead of `call`, with the prefix's hooks on: states that are cached
        stand for the layers below, others are computed and kept. The outputs are the same to the bit.

        call: with `input_ids` [batch, tokens]. rows: where rows are in it. reading: their states, requested before.
        """
        inputs = call["input_ids"]
        states = self.cache.states(rows, tuple(inputs.shape)) if reading is None else reading.result()
        if all_ranks(states is not None):  # else the layers below run on every rank, for each holds a part of them
            rest = {name: tensor for name, tensor in call.items() if name != "input_ids"}
            with self.prefix.replaced_by(states.to(inputs.device, non_blocking=True)) as substitute:
                yield {**rest, **substitute}
            return
        self.prefix.bring_back()  # were its weights on the host, a row of the cache is damaged
        with self.prefix.keeping() as kept:
            yield dict(call)
        self.cache.keep(rows, kept[0])


def open_prefix(
    model: nn.Module, region: Region, digests: Mapping[str, str], memory: MemorySettings, tokens: int,
    settings: Any = None,
) -> tuple[CachedPrefix | None, str | None]:
    """The layers below `region` with their open cache; or None, with the reason in words if there is one to tell.

    digests: of the frozen tensors. tokens: of the rows to be cached. settings: of a training, see `why_not`.
    """
    prefix = FrozenPrefix.of(model, region)
    if memory.prefix_cache == "off" or prefix is None or prefix.layer == 0:
        return None, None
    if (reason := why_not(model, prefix, settings)) is not None:
        return None, reason
    limit = parse_size(memory.prefix_cache_limit, "memory.prefix_cache_limit")
    wanted = tokens * model.config.get_text_config().hidden_size * next(model.parameters()).dtype.itemsize
    if wanted > limit:
        return None, (f"these rows need {wanted / 2**30:.1f} GiB, and memory.prefix_cache_limit is "
                      f"{memory.prefix_cache_limit}")
    return CachedPrefix(prefix, PrefixCache.open(prefix_cache_folder(), model, prefix, digests, limit)), None
