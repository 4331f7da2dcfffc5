"""A backward that hands over each gradient as soon as it is complete, so that they need not all be in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor


def backward(
    loss: Tensor, parameters: Iterable[Tensor], take: Callable[[Tensor], None], *, retain_graph: bool = False
) -> None:
    """Run loss.backward(), and call take(p) for each of `parameters` as soon as p.grad is complete.

    `take` may change p: autograd calls the hook (`register_post_accumulate_grad_hook`) after it has summed all uses of
    p, and by then each of these uses has read p's values. One case is different: a use of p that gives no gradient,
    such as through `detach()`, may be read later. autograd then raises because p has a new version. In a checkpointed
    layer it does not raise, and the layer is recomputed with the new values.

    The hooks exist only during this call, so another backward or another optimizer never sees them.
    """
    handles = [p.register_post_accumulate_grad_hook(take) for p in parameters]
    try:
        loss.backward(retain_graph=retain_graph)
    finally:
        for handle in handles:
            handle.remove()
