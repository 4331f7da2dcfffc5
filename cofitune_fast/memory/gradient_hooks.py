"""A backward that hands over each gradient as soon as it is complete, so that gradients need not stand side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor


def backward(
    loss: Tensor, parameters: Iterable[Tensor], take: Callable[[Tensor], None], *, retain_graph: bool = False
) -> None:
    """loss.backward() that calls take(p) for each of `parameters` once p.grad is complete.

    autograd adds up all uses of a parameter before it calls the hook (`register_post_accumulate_grad_hook`), and each
    of these uses has then read p's values; so `take` may change p. A use that gives p no gradient (through `detach()`)
    may still come: autograd then raises for p's new version, unless the use lies in a checkpointed layer, which would
    silently be recomputed with the new values. The hooks are there during this call only: another backward, or another
    optimizer of the same model, never meets them.
    """
    handles = [p.register_post_accumulate_grad_hook(take) for p in parameters]
    try:
        loss.backward(retain_graph=retain_graph)
    finally:
        for handle in handles:
            handle.remove()
