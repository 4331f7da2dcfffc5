"""Count floating-point operations and memory traffic of a block of code, on real or fake tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class WorkCount(NamedTuple):
    """Amount of work.

    flops: operations in matrix products and attention; a multiplication with an addition counts as two.
    moved: bytes read and written by all other operators, without fusion, as in eager mode.
    """

    flops: int = 0
    moved: int = 0

    def __add__(self, other: tuple) -> WorkCount:
        return WorkCount(self.flops + other[0], self.moved + other[1])

    def __mul__(self, times: int) -> WorkCount:
        return WorkCount(self.flops * times, self.moved * times)


class Work(TorchDispatchMode):
    """Context that counts the work of operators.

    Attention counts in full, also if it is causal: a padded batch has an explicit mask, and then kernels skip nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.restart()

    def restart(self) -> None:
        self.count = WorkCount()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = getattr(func, "overloadpacket", func)
        if packet in _FLOPS:
            self.count += (_FLOPS[packet](*args, **kwargs, out_val=result), 0)
        elif not (getattr(func, "is_view", False) or packet.__name__ in _ALLOCATIONS):
            read, made = (sum(leaf.nbytes for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
                          for tree in ((args, kwargs), result))
            self.count += (0, read + made if made else 0)  # fake tensors also dispatch queries, such as for the device
        return result


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, out_val: Any = None,
                        **kwargs: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


_FLOPS = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
