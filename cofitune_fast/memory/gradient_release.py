"""Gradient release: update every parameter as soon as its gradient is complete, and free the gradient.

The idea is from LOMO (Lv et al., arXiv 2306.09782); the update is MaskedAdamW's fused pass. Only one gradient of a
region is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CofituneError
from ..ops import GradNorm, grad_norm
from ..ops._checks import require
from ..optim import MaskedAdamW, OneByOne
from . import gradient_hooks

CLIPPING = ("exact", "lagged")


def refuse_accumulation(steps: int) -> None:
    """Refuse gradient accumulation, as released gradients are gone before the next micro-batch.

    Raises:
        CofituneError: `steps` is above 1.
    """
    if steps > 1:
        raise CofituneError(
            "memory.gradient_release applies each gradient as it is made, so training.gradient_accumulation_steps must "
            f"be 1, not {steps}; use a larger per_device_train_batch_size with gradient_checkpointing instead."
        )


class GradientRelease:
    """Replacement for `loss.backward()` that updates each parameter at once and keeps no gradient.

        release = GradientRelease(optimizer, "lagged")
        release.backward(loss)      # weights and states are updated when it returns
        optimizer.step()            # finds no gradient and does nothing, but schedulers expect the call
        scheduler.step()

    An update needs the clip factor, and the clip factor needs the norm of all gradients. `clipping` resolves this in
    one of two ways. The limit is `optimizer.max_grad_norm`.

    "exact": the backward runs twice over the same graph. The first pass measures only the norms of the gradients. The
        second updates the parameters with the factor of the step's own norm. A norm that is not finite skips the whole
        step, as in an ordinary step. The norm is combined from one float32 norm per parameter, and its relative
        difference from that of an ordinary step is below 1e-6. With the same factor, as always if nothing is clipped,
        the bits are the same. Both passes must give the same gradients: this excludes kernels that overwrite their
        saved tensors, and a compiled model needs donated buffers switched off.
    "lagged": the backward runs once. Each gradient is clipped by the larger of two norms: that of all gradients in the
        previous step, and its own. So after a jump of the norm gradients are first clipped one by one, and as a whole
        one step later. A gradient that is not finite skips only its own parameter, and a norm that is not finite is not
        carried over to the next step. The first step is an exact one. With max_grad_norm=None nothing is clipped.

    An error during the updating backward, such as out of memory, leaves some parameters updated and others not.
    Continue from a checkpoint then.

    Raises:
        CofituneError: the mode is unknown; the optimizer is capturable, is not a plain MaskedAdamW or has sharded
            parameters; or several processes train, as their gradients would have to be averaged first.
    """

    def __init__(self, optimizer: MaskedAdamW, clipping: str = "lagged"):
        require(clipping in CLIPPING, f"GradientRelease: clipping must be 'exact' or 'lagged', not {clipping!r}.")
        require(type(optimizer) is MaskedAdamW,
                f"GradientRelease: it updates by MaskedAdamW, not by {type(optimizer).__name__}; HostMaskedAdamW frees "
                "gradients by itself.")
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized()
                     and torch.distributed.get_world_size() > 1)
        require(alone and not any(hasattr(p, "device_mesh") for p in _parameters(optimizer)),
                "GradientRelease: gradients of several processes are averaged after the backward, but are updated by "
                "during it; train in one process or switch gradient release off.")
        self.optimizer, self.clipping = optimizer, clipping
        self._steps = OneByOne(optimizer)
        self._lagged: Tensor | None = None  # the last finite norm

    @property
    def norm(self) -> Tensor | None:
        """Norm of the last backward's gradients before clipping, float32 0-d on the parameters' device."""
        return self.optimizer.last_grad_norm

    def backward(self, loss: Tensor) -> None:
        """Run the backward of `loss` (0-d) and the whole optimizer step.

        Raises:
            CofituneError: a trained parameter already has a gradient, or `optimizer.step()` was not called after the
                last backward.
        """
        require(not self._steps.unfinished,
                "GradientRelease: there was a backward and no optimizer.step() since; each backward is a step of its "
                "own, so gradients cannot be accumulated over several.")
        parameters = _parameters(self.optimizer)
        for p in parameters:
            require(p.grad is None,
                    f"GradientRelease: a parameter of shape {list(p.shape)} has a gradient before the backward, which "
                    "would be applied with the new one; call model.zero_grad() first.")
        limit = self.optimizer.max_grad_norm
        if self.clipping == "exact" or (self._lagged is None and limit is not None):
            measured = self._exact(loss, parameters)
        else:
            measured = self._by_last_norm(loss, parameters)
        self._steps.finish(measured)
        if self.clipping == "lagged":
            last = torch.zeros_like(measured.norm) if self._lagged is None else self._lagged
            self._lagged = torch.where(measured.norm.isfinite(), measured.norm, last)

    def _exact(self, loss: Tensor, parameters: list[Tensor]) -> GradNorm:
        norms: list[Tensor] = []

        def measure(p: Tensor) -> None:
            norms.append(self._norm(p))
            p.grad = None

        gradient_hooks.backward(loss, parameters, measure, retain_graph=True)
        measured = self._together(norms)
        gradient_hooks.backward(loss, parameters, lambda p: self._update(p, measured.clip))
        return measured

    def _by_last_norm(self, loss: Tensor, parameters: list[Tensor]) -> GradNorm:
        norms: list[Tensor] = []

        def update(p: Tensor) -> None:
            own = self._norm(p)
            norms.append(own)
            larger = own if self._lagged is None else torch.maximum(own, self._lagged.to(own.device))  # NaN stays
            self._update(p, self._clip([larger]).clip)

        gradient_hooks.backward(loss, parameters, update)
        return self._together(norms)

    def _norm(self, p: Tensor) -> Tensor:
        return grad_norm([self._steps.gradient(p)], backend=self.optimizer.backend).norm

    def _together(self, norms: list[Tensor]) -> GradNorm:
        return self._clip([norm.to(norms[0].device) for norm in norms])  # parameters may lie on several devices

    def _clip(self, norms: list[Tensor]) -> GradNorm:
        """Norm and clip of all gradients, from the norms of their parts."""
        return grad_norm(norms, self.optimizer.max_grad_norm, backend=self.optimizer.backend)

    def _update(self, p: Tensor, clip: Tensor) -> None:
        self._steps.step(p, clip.to(p.device))
        p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizer, and "lagged_norm": the norm by which the next step clips (a number or None)."""
        return {**self.optimizer.state_dict(), "lagged_norm": None if self._lagged is None else self._lagged.item()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict`. Without a lagged norm in it the next step is an exact one."""
        self.optimizer.load_state_dict(state_dict)
        norm = state_dict.get("lagged_norm")
        self._lagged = None if norm is None else torch.tensor(norm, device=_parameters(self.optimizer)[0].device)


def _parameters(optimizer: MaskedAdamW) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
