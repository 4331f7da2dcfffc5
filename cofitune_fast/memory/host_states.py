"""Optimizer states on the host: gradients are copied there, the CPU kernel updates, weights are copied back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..ops._checks import plain, require
from ..optim import MaskedAdamW, OneByOne
from ..optim.arguments import named_pairs
from . import gradient_hooks

_NAME = "HostMaskedAdamW"
_IN_FLIGHT = 2  # gradients that may stay on a device until their copy has ended


class HostMaskedAdamW(MaskedAdamW):
    """MaskedAdamW for parameters on a device, with all states and all arithmetic on the host.

        optimizer = HostMaskedAdamW(region.apply(model), lr=4e-4)      # the same arguments as MaskedAdamW
        optimizer.backward(loss)                                        # in place of loss.backward()
        optimizer.step()

    Each trained parameter has a copy on the host, pinned if the parameter lies on a CUDA device. The optimizer is a
    MaskedAdamW of these copies, with its names, groups, masks, exact clipping, states and state dict.

    The device holds the weights and at most three gradients (four during accumulation). `backward` copies each gradient
    to the host on a stream of its own as soon as it is complete, and frees it. `step` updates the copies one by one,
    and copies each back while the next is computed. Later work on the current stream waits for the last copy.

    The host keeps state, weight and gradient of each trained parameter: 12 bytes per element in storage "bf16_sr".

    Gradient accumulation: several `backward` calls before a `step` are summed on the device, in the gradients' dtype,
    as in autograd. The sum so far is copied back from the host for this. After a plain `loss.backward()`, `step`
    collects the gradients from the device; this is correct, but all of them were in memory together. `step` consumes
    the gradients.

    Weights that were changed on the device between steps (in place under no_grad, or by assigning `.data`) are read
    before the step. A change in place through `.data` cannot be detected; call `read_weights()` after it.

    Raises:
        CofituneError: as in MaskedAdamW; capturable=True; parameters sharded over processes.
    """

    def __init__(self, params: Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]], *args: Any, **options: Any):
        self._mirrors: dict[Tensor, _Mirror] = {}  # parameter on the device -> its copy
        self._links: dict[torch.device, _Link] = {}
        super().__init__(params, *args, **options)
        require(not self.capturable, f"{_NAME}: capturable=True is for steps on the device; leave it out.")
        self._steps = OneByOne(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        pairs = named_pairs(param_group, self._by_name())
        for name, p in pairs:
            require(not hasattr(p, "device_mesh"),
                    f"{_NAME}: {name} is sharded over processes; keep its states on the device.")
            require(sum(other is p for _, other in pairs) == 1 and p not in self._mirrors,
                    f"{_NAME}: {name} is the same parameter as another one; give it once.")
        added = {p: _Mirror(name, p) for name, p in pairs}
        super().add_param_group({**param_group, "params": [(mirror.name, mirror.host) for mirror in added.values()]})
        self._mirrors.update(added)

    def backward(self, loss: Tensor) -> None:
        """Run the backward of `loss` (0-d). Each gradient is copied to the host as soon as it is complete."""
        gradient_hooks.backward(loss, self._mirrors, self._take)

    @torch.no_grad()
    def _take(self, p: Tensor) -> None:
        mirror = self._mirrors[p]
        mirror.check(p.grad)
        grad, p.grad = p.grad, None
        self._link(p).to_host(mirror.buffer(), grad, add=mirror.host.grad is not None)
        mirror.host.grad = mirror.buffer()

    def _gather(self) -> None:
        """Copy all remaining gradients and changed weights to the host, and wait for the copies."""
        for p, mirror in self._mirrors.items():
            if p.grad is not None:
                self._take(p)
            mirror.refresh()
        for link in self._links.values():
            link.synchronize()

    @torch.no_grad()
    def measure_grad_norm(self) -> Tensor:
        """Measure the norm on the host, as in MaskedAdamW. Waits until all gradients are there."""
        self._gather()
        return super().measure_grad_norm()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; returns what `closure` returns, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._steps.unfinished:
            self._gather()
        else:
            self.measure_grad_norm()
        clip, self._measured["clip"] = self._measured["clip"], None
        for p, mirror in self._mirrors.items():
            if mirror.host.grad is not None:
                self._steps.step(mirror.host, clip)
                mirror.host.grad = None
                self._link(p).to_device(p, mirror.host.detach())
                mirror.note()
        for link in self._links.values():
            link.let_current_wait()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set all gradients to None, on the host and on the device."""
        super().zero_grad()
        for p in self._mirrors:
            p.grad = None

    @torch.no_grad()
    def read_weights(self) -> None:
        """Copy the weights from the device to the host."""
        for mirror in self._mirrors.values():
            mirror.read()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state as in MaskedAdamW. The weights are read from the model."""
        super().load_state_dict(state_dict)
        self.read_weights()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_links": {}}  # streams are not copied, but made when needed

    def _link(self, p: Tensor) -> _Link:
        if p.device not in self._links:
            self._links[p.device] = _Link(p.device)
        return self._links[p.device]


class _Mirror:
    """A parameter `p` on a device, its copy `host` on the host, and a host buffer for its gradient."""

    def __init__(self, name: str, p: Tensor):
        self.name, self.p = name, p
        self.host = nn.Parameter(self._empty())
        self._gradient: Tensor | None = None
        self.read()

    def _empty(self) -> Tensor:
        return torch.empty(self.p.shape, dtype=self.p.dtype, pin_memory=self.p.is_cuda)

    def buffer(self) -> Tensor:
        """Host buffer for the gradient. It is kept from step to step, as pinning memory is slow."""
        if self._gradient is None:
            self._gradient = self._empty()
        return self._gradient

    @torch.no_grad()
    def read(self) -> None:
        self.host.copy_(self.p)
        self.note()

    def note(self) -> None:
        """Record that the copy is equal to p as it is now."""
        self._seen = self._version()

    def refresh(self) -> None:
        if self._seen != self._version():
            self.read()

    def _version(self) -> tuple[int, int, tuple[int, ...]]:
        return self.p.data_ptr(), self.p._version, self.p.stride()

    def check(self, grad: Tensor) -> None:
        require(
            grad.layout == torch.strided and (grad.dtype, grad.shape) == (self.host.dtype, self.host.shape),
            f"{_NAME}: the gradient of {self.name} is {plain(grad.dtype)} of shape {list(grad.shape)} and "
            f"{plain(grad.layout)}, but the parameter was {plain(self.host.dtype)} of shape {list(self.host.shape)} "
            "when the optimizer was made; make it after the model has its final dtype, and without sparse=True.",
        )


class _Link:
    """Copies between one device and the host. On CUDA they run on a stream of their own; else they are synchronous."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._leaving: deque[tuple[Any, Tensor]] = deque()

    @contextmanager
    def _after_current(self) -> Iterator[bool]:
        """Context that issues work on the link's stream, after all work of the current stream.

        Yields True if copies are asynchronous.
        """
        if self._stream is None:
            yield False
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield True

    def to_host(self, target: Tensor, grad: Tensor, *, add: bool) -> None:
        """Copy `grad` to `target` on the host, or with `add` their sum. The link owns `grad` from now on."""
        with self._after_current() as overlapped:
            if add:
                grad.add_(target.to(grad.device, non_blocking=overlapped))
            target.copy_(grad, non_blocking=overlapped)
        if self._stream is not None:
            self._leaving.append((self._stream.record_event(), grad))
            self._free(_IN_FLIGHT)

    def _free(self, keep: int) -> None:
        # A freed tensor's memory returns to the current stream, which must not write to it before the copy has ended.
        # So the current stream waits for the copy, and then the tensor is freed. With record_stream the memory would be
        # free only once the host sees the end of the copy; the host runs ahead, so gradients would accumulate.
        while len(self._leaving) > keep:
            event, grad = self._leaving.popleft()
            torch.cuda.current_stream(self._device).wait_event(event)
            del grad

    def to_device(self, target: Tensor, source: Tensor) -> None:
        with self._after_current() as overlapped:
            target.copy_(source, non_blocking=overlapped)

    def let_current_wait(self) -> None:
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def synchronize(self) -> None:
        """Wait on the host for all copies."""
        if self._stream is not None:
            self._stream.synchronize()
            self._leaving.clear()
