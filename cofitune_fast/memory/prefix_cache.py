"""The states of a run's rows at the first trained layer's input, computed once and streamed from then on."""

from __future__ import annotations

import hashlib
import json
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
    """A row of a batch: its key, and the places of its tokens in the flattened [batch * tokens] (int64 [n])."""

    key: bytes
    places: Tensor


def row_keys(rows: Iterable[Sequence[int]]) -> list[bytes]:
    """Keys of rows of token ids: another tokenisation is another key.

    Rows that are equal get keys of their own, in their order, for their states differ in the last bit: they come from
    batches of different rows.
    """
    seen: Counter[bytes] = Counter()
    keys = []
    for token_ids in rows:
        content = np.asarray(token_ids, dtype=np.int64).tobytes()
        keys.append(hashlib.blake2b(content + b"%d" % seen[content], digest_size=KEY_BYTES).digest())
        seen[content] += 1
    return keys


class PrefixCache:
    """States of rows, read ahead of use and written behind it, by one thread each.

    Whatever is missing, damaged or of another model is computed and never trusted: a folder belongs to the bytes of one
    prefix, its dtype, device and attention implementation, a row to its tokens, and each row has a checksum.
    """

    def __init__(self, store: PrefixStore, device: torch.device):
        self.store, self._device = store, device
        self._reader = ThreadPoolExecutor(1, "prefix-reader")
        self._writer = ThreadPoolExecutor(1, "prefix-writer")
        self._written: Future | None = None

    @classmethod
    def open(
        cls, folder: str | Path, model: nn.Module, prefix: FrozenPrefix, digests: Mapping[str, str], limit: int
    ) -> PrefixCache:
        """The cache of `prefix` in the common `folder`.

        digests: of the frozen tensors of `model` (FrozenProof has them); those of the prefix tell one cache from
        another, with its configuration and the releases that compute it. limit: bytes of all caches there together.
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
            "dtype": str(embedding.dtype).removeprefix("torch."), "attention": config._attn_implementation,
            "device": embedding.device.type, "torch": torch.__version__, "transformers": transformers.__version__,
        }
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
        return cls(PrefixStore(Path(folder) / name, embedding.dtype, config.hidden_size, limit, about),
                   embedding.device)

    def request(self, rows: Sequence[PlacedRow], shape: tuple[int, int]) -> Future[Tensor | None]:
        """Begin to read the states of a batch of `shape` (batch, tokens); the result is as of `states`."""
        return self._reader.submit(self.states, rows, shape)

    def states(self, rows: Sequence[PlacedRow], shape: tuple[int, int]) -> Tensor | None:
        """[batch, tokens, hidden] on the host, zero where no row has a token; None unless all rows are there."""
        if not self.store.has_all(row.key for row in rows):
            return None
        states = torch.empty(shape[0] * shape[1], self.store.hidden, dtype=self.store.dtype,
                             pin_memory=self._device.type == "cuda")
        # Numpy's copies, for torch would start another team of threads in the reader, which then waits busily on the
        # cores that train.
        raw = states.view(torch.uint8).numpy()
        raw.fill(0)
        for row in rows:
            known = self.store.read(row.key)
            if known is None or len(known) != len(row.places):
                return None
            raw[row.places.numpy()] = known.view(torch.uint8).numpy()
        return states.view(*shape, -1)

    def keep(self, rows: Sequence[PlacedRow], states: Tensor) -> None:
        """Write what a forward gave, states [batch, tokens, hidden], behind the back of the training."""
        if self.store.failure is not None:
            return
        flat = states.detach().flatten(0, 1)
        new = {row.key: flat[row.places.to(flat.device)] for row in rows if row.key not in self.store}
        if self._written is not None:
            self._written.result()  # one batch at most waits in memory
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
    """Why a run must not cache its prefix, in words; None if it may.

    settings: transformers.TrainingArguments, whose NEFTune noise would change the embeddings at every step.
    """
    if prefix is None or prefix.layer == 0:
        return "no layer lies below the region"
    if getattr(settings, "neftune_noise_alpha", None):
        return "training.neftune_noise_alpha adds noise to the embeddings"
    if (random := randomness(model, prefix)) is not None:
        return f"the frozen layers are random ({random})"
    return None
