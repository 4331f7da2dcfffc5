"""Live bytes of tensors during a piece of work, real tensors or fake ones: what predictions are held against."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MADE = "made"
BEFORE = "before"

# Kernels that need more for themselves than their result, as a function of their first argument. The others need
# little beside their operands: what attention holds per thread, for example.
_WORKSPACE = {torch.ops.aten.logsumexp.default: lambda x: x.nbytes}  # exp(x - maximum)


class LiveBytes(TorchDispatchMode):
    """Inside the block it follows every storage that an operator makes, until the storage is freed.

    A storage counts once, in full, however many views of it there are. What stood before the block is not counted
    unless `count` is told to; nor is what a kernel makes for itself and frees before it returns, but for those kernels
    where it is large. Fake tensors have storages of the size they stand for, so a model of 70 billion parameters can be
    followed without its memory.
    The backward of CPU and fake tensors runs in the calling thread and is followed too.

    live: bytes now. peak: the largest `live` since the block began or `restart` was called. at_peak: {kind: bytes} at
    that moment; a kind is what `count` called it, "made" otherwise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.kinds: Counter[str] = Counter()
        self.at_peak: dict[str, int] = {}
        self._known: dict[int, tuple[weakref.ref, str, int]] = {}

    def count(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count the storages of `tensors` as `kind`: those from before the block too, those made in it anew."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            known = self._known.get(id(storage))
            if known is not None:
                self._drop(known[1], known[2])
            self._add(storage, kind)

    def exclude(self, tensors: Iterable[Tensor]) -> None:
        """Do not count the storages of `tensors`, whenever they were made."""
        self.count(tensors, BEFORE)

    def rename(self, kind: str, new: str) -> None:
        """What counts as `kind` counts as `new` from now on."""
        self._known = {key: (ref, new if known == kind else known, size)
                       for key, (ref, known, size) in self._known.items()}
        self.kinds[new] += self.kinds.pop(kind, 0)

    def restart(self) -> None:
        """Forget the peak: it becomes what lives now."""
        self.peak = 0
        self._note()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        for leaf in (*tree_leaves(args), *tree_leaves(kwargs)):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in self._known:
                self._add(leaf.untyped_storage(), BEFORE)
        if func in _WORKSPACE:
            self._note(_WORKSPACE[func](args[0]))
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in self._known:
                self._add(leaf.untyped_storage(), MADE)
        return result

    def _add(self, storage: torch.UntypedStorage, kind: str) -> None:
        key, size = id(storage), storage.nbytes()
        self._known[key] = (weakref.ref(storage, lambda _: self._freed(key)), kind, size)
        if kind == BEFORE:
            return
        self.live += size
        self.kinds[kind] += size
        self._note()

    def _note(self, workspace: int = 0) -> None:
        if self.live + workspace > self.peak:
            self.peak, self.at_peak = self.live + workspace, +(self.kinds + Counter({MADE: workspace}))

    def _freed(self, key: int) -> None:
        _, kind, size = self._known.pop(key)
        self._drop(kind, size)

    def _drop(self, kind: str, size: int) -> None:
        if kind != BEFORE:
            self.live -= size
            self.kinds[kind] -= size

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, value, traceback)
        self._known.clear()  # the callbacks go with the references: nothing is counted after the block
