"""Track the live bytes of tensors, real or fake, during a block of code."""

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

# Temporary memory of kernels that need much of it, as a function of their first argument. Other kernels need little
# beside operands and result, such as the per-thread buffers of attention.
_WORKSPACE = {torch.ops.aten.logsumexp.default: lambda x: x.nbytes}  # exp(x - maximum)


class LiveBytes(TorchDispatchMode):
    """Context that tracks every storage made by an operator, until the storage is freed.

    A storage counts once and in full, however many views it has. Storages from before the block count only if `count`
    is called for them. Temporary memory inside a kernel does not count, except for the kernels in _WORKSPACE. Fake
    tensors have storages of their nominal size, so a model of 70 billion parameters can be tracked without its memory.
    The backward of CPU and fake tensors runs in the calling thread, so it is tracked too.

    live: bytes now. peak: the largest `live` since the block began or since `restart`. at_peak: {kind: bytes} at the
    peak. A kind is the name given by `count`, or "made".
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.kinds: Counter[str] = Counter()
        self.at_peak: dict[str, int] = {}
        self._known: dict[int, tuple[weakref.ref, str, int]] = {}

    def count(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count the storages of `tensors` as `kind`, whether they were made before the block or in it."""
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
        """Move everything that counts as `kind` to the kind `new`."""
        self._known = {key: (ref, new if known == kind else known, size)
                       for key, (ref, known, size) in self._known.items()}
        self.kinds[new] += self.kinds.pop(kind, 0)

    def restart(self) -> None:
        """Reset the peak to the bytes that are live now."""
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
        self._known.clear()  # drops the callbacks too, so nothing is counted after the block


class GroupedProducts(TorchDispatchMode):
    """Context in which the products of experts run on fake tensors of any dtype, of which PyTorch lets only bfloat16.

    The kernels themselves take every dtype. The context must be entered before LiveBytes.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.ops.aten._grouped_mm.default or args[0].dtype == torch.bfloat16:
            return func(*args, **kwargs)
        left, right = (torch.empty_strided(one.shape, one.stride(), dtype=torch.bfloat16, device=one.device)
                       for one in args[:2])
        result = func(left, right, *args[2:], **kwargs)
        return torch.empty_strided(result.shape, result.stride(), dtype=args[0].dtype, device=result.device)
