"""Cache of the states at the first trained layer's input: computed once per row, then streamed from disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from ..models.fingerprint import combine_digests, normalize_name
from ..models.quantized import quantization
from .prefix import FrozenPrefix, randomness
from .prefix_store import KEY_BYTES, PrefixStore

_FORMAT = 1
_NOT_COMPUTED = ("_name_or_path", "name_or_path", "transformers_version", "architectures", "use_cache",
                 "quantization_config")


@dataclass(frozen=True, eq=False)
class PlacedRow:
    """A row of a batch: its key in the cache, and the places of its tokens in the flattened batch, int64 [n]."""

    key: bytes
    places: Tensor


def row_keys(rows: Iterable[Sequence[int]]) -> list[bytes]:
    """Keys of rows, made from their token ids.

    Equal rows get different keys, in their order. Their states can differ in the last bit, as they come from batches
    with different other rows.
    """
    seen: Counter[bytes] = Counter()
    keys = []
    for token_ids in rows:
        content = np.asarray(token_ids, dtype=np.int64).tobytes()
        keys.append(hashlib.blake2b(content + b"%d" % seen[content], digest_size=KEY_BYTES).digest())
        seen[content] += 1
    return keys


class PrefixCache:
    """States of rows on disk. One thread reads ahead, and one writes in the background.

    A folder belongs to the bytes of one prefix, its dtype, device and attention implementation. A row belongs to its
    token ids and has a checksum. States that are missing or damaged are computed again.
    """

    def __init__(self, store: PrefixStore, device: torch.device, width: tuple[int, ...]):
        self.store, self._device, self._width = store, device, width
        self._reader = ThreadPoolExecutor(1, "prefix-reader")
        self._writer = ThreadPoolExecutor(1, "prefix-writer")
        self._written: Future | None = None

    @classmethod
    def open(
        cls, folder: str | Path, model: nn.Module, prefix: FrozenPrefix, digests: Mapping[str, str], limit: int
    ) -> PrefixCache:
        """Open the cache of `prefix` in the common `folder`.

        digests: digests of the frozen tensors of `model`, see FrozenProof. A cache is identified by the digests of its
        prefix, the model's configuration, and the versions of torch and transformers.
        limit: bytes that all caches in `folder` may take together.
        """
        embedding = model.get_input_embeddings().weight
        config = model.config.get_text_config()
        below = {id(module) for module in (model.get_input_embeddings(), *prefix.modules)}
        names = tuple(f"{normalize_name(name)}." for name, module in model.named_modules() if id(module) in below)
        settings = {key: value for key, value in config.to_dict().items() if key not in _NOT_COMPUTED}
        about = {
            "format": _FORMAT, "layer": prefix.layer, "quantized": quantization(model),
            "weights": combine_digests({name: digest for name, digest in digests.items() if name.startswith(names)}),
            "settings": hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest(),
            "dtype": str(prefix.dtype).removeprefix("torch."), "attention": config._attn_implementation,
            "device": embedding.device.type, "torch": torch.__version__, "transformers": transformers.__version__,
        }
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
        store = PrefixStore(Path(folder) / name, prefix.dtype, math.prod(prefix.width), limit, about)
        return cls(store, embedding.device, prefix.width)

    def request(self, rows: Sequence[PlacedRow], shape: tuple[int, int]) -> Future[Tensor | None]:
        """Start reading the states of a batch of `shape` (batch, tokens). The result is that of `states`."""
        return self._reader.submit(self.states, rows, shape)

    def states(self, rows: Sequence[PlacedRow], shape: tuple[int, int]) -> Tensor | None:
        """Read states [batch, tokens, *width] to the host, zero at padding; None unless all rows are cached."""
        if not self.store.has_all(row.key for row in rows):
            self.flush()  # the last batch may still be on its way to the disk
            if not self.store.has_all(row.key for row in rows):
                return None
        states = torch.empty(shape[0] * shape[1], self.store.hidden, dtype=self.store.dtype,
                             pin_memory=self._device.type == "cuda")
        # numpy copies here: torch would start a second thread pool in the reader, whose idle threads would spin on the
        # cores that train.
        raw = states.view(torch.uint8).numpy()
        raw.fill(0)
        for row in rows:
            known = self.store.read(row.key)
            if known is None or len(known) != len(row.places):
                return None
            raw[row.places.numpy()] = known.view(torch.uint8).numpy()
        return states.view(*shape, *self._width)

    def keep(self, rows: Sequence[PlacedRow], states: Tensor) -> None:
        """Store states [batch, tokens, *width] of a forward, in the background."""
        if self.store.failure is not None:
            return
        flat = states.detach().flatten(2).flatten(0, 1)
        new = {row.key: flat[row.places.to(flat.device)] for row in rows if row.key not in self.store}
        if self._written is not None:
            self._written.result()  # at most one batch waits in memory
        self._written = self._writer.submit(self.store.write, list(new.items()))

    def flush(self) -> None:
        """Wait until everything is written."""
        if self._written is not None:
            self._written.result()

    def close(self) -> None:
        self.flush()
        self._reader.shutdown()
        self._writer.shutdown()
        self.store.close()


def why_not(model: nn.Module, prefix: FrozenPrefix | None, settings: Any) -> str | None:
    """The reason why a run cannot cache its prefix, in words; None if it can.

    settings: transformers.TrainingArguments. NEFTune noise would change the embeddings at every step.
    """
    if prefix is None or prefix.layer == 0:
        return "no layer lies below the region"
    if getattr(settings, "neftune_noise_alpha", None):
        return "training.neftune_noise_alpha adds noise to the embeddings"
    if (random := randomness(model, prefix)) is not None:
        return f"the frozen layers are random ({random})"
    return None
