"""Optimizer states on the host: gradients go there as they are made, the CPU kernel steps there, weights come back."""

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
_IN_FLIGHT = 2  # gradients that may wait on a device for the end of their copy


class HostMaskedAdamW(MaskedAdamW):
    """MaskedAdamW for parameters on a device, with all states, and the arithmetic, on the host.

        optimizer = HostMaskedAdamW(region.apply(model), lr=4e-4)      # arguments as of MaskedAdamW
        optimizer.backward(loss)                                        # in place of loss.backward()
        optimizer.step()

    Each trained parameter has a copy on the host, pinned if it lies on a CUDA device, and the optimizer is a
    MaskedAdamW of these copies: names, groups, masks, clipping by the norm of all gradients (exact), states and their
    saving are its. The device holds the weights, and of the gradients three at most (four while they are accumulated):
    `backward` copies each to the host on a stream of its own as soon as it is complete, and frees it. `step` updates
    one copy after another and sends each back while the next is computed; what the current stream is given afterwards
    waits for the last of them.

    Per trained parameter the host keeps its state, weight and gradient: in storage "bf16_sr" 12 bytes.

    Gradient accumulation: several `backward` before a `step` are added up as autograd does it, on the device and in
    the gradients' dtype; the sum so far comes back from the host for it. After a plain `loss.backward()`, `step`
    collects the gradients from the device; they are right but stood there side by side. `step` uses gradients up:
    nothing is left of them for a second one.

    Weights that were changed on the device between steps (in place under no_grad, or `.data` replaced) are taken over
    before the step. After a change through `.data` in place, which cannot be seen, call `read_weights()`.

    Raises:
        CofituneError: as MaskedAdamW does; capturable=True; parameters sharded over processes.
    """

    def __init__(self, params: Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]], *args: Any, **options: Any):
        self._mirrors: dict[Tensor, _Mirror] = {}  # by the parameter on the device
        self._links: dict[torch.device, _Link] = {}
        super().__init__(params, *args, **options)
        require(not self.capturable, f"{_NAME}: capturable=True is for steps on the device; leave it out.")
        self._steps = OneByOne(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        pairs = named_pairs(param_group)
        for name, p in pairs:
            require(not hasattr(p, "device_mesh"),
                    f"{_NAME}: {name} is sharded over processes; keep its states on the device.")
            require(sum(other is p for _, other in pairs) == 1 and p not in self._mirrors,
                    f"{_NAME}: {name} is the same parameter as another one; give it once.")
        added = {p: _Mirror(name, p) for name, p in pairs}
        super().add_param_group({**param_group, "params": [(mirror.name, mirror.host) for mirror in added.values()]})
        self._mirrors.update(added)

    def backward(self, loss: Tensor) -> None:
        """The backward of `loss` (0-d); each gradient goes to the host as soon as it is complete."""
        gradient_hooks.backward(loss, self._mirrors, self._take)

    @torch.no_grad()
    def _take(self, p: Tensor) -> None:
        mirror = self._mirrors[p]
        mirror.check(p.grad)
        grad, p.grad = p.grad, None
        self._link(p).to_host(mirror.buffer(), grad, add=mirror.host.grad is not None)
        mirror.host.grad = mirror.buffer()

    def _gather(self) -> None:
        """All gradients and changed weights are on the host when it returns."""
        for p, mirror in self._mirrors.items():
            if p.grad is not None:
                self._take(p)
            mirror.refresh()
        for link in self._links.values():
            link.synchronize()

    @torch.no_grad()
    def measure_grad_norm(self) -> Tensor:
        """As MaskedAdamW's, but on the host; waits for the gradients to arrive there."""
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
        """Forgets all gradients, on the host and on the device; they are None afterwards."""
        super().zero_grad()
        for p in self._mirrors:
            p.grad = None

    @torch.no_grad()
    def read_weights(self) -> None:
        """Take the weights as they are on the device now."""
        for mirror in self._mirrors.values():
            mirror.read()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As MaskedAdamW's; the weights are those of the model now."""
        super().load_state_dict(state_dict)
        self.read_weights()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_links": {}}  # streams are not copied, but made when needed

    def _link(self, p: Tensor) -> _Link:
        if p.device not in self._links:
            self._links[p.device] = _Link(p.device)
        return self._links[p.device]


class _Mirror:
    """A parameter on a device, `p`, its copy on the host, `host`, and a place there for its gradient."""

    def __init__(self, name: str, p: Tensor):
        self.name, self.p = name, p
        self.host = nn.Parameter(self._empty())
        self._gradient: Tensor | None = None
        self.read()

    def _empty(self) -> Tensor:
        return torch.empty(self.p.shape, dtype=self.p.dtype, pin_memory=self.p.is_cuda)

    def buffer(self) -> Tensor:
        """Kept from step to step: pinning memory is slow."""
        if self._gradient is None:
            self._gradient = self._empty()
        return self._gradient

    @torch.no_grad()
    def read(self) -> None:
        self.host.copy_(self.p)
        self.note()

    def note(self) -> None:
        """The copy is that of p as p is now."""
        self._seen = self._version()

    def refresh(self) -> None:
        if self._seen != self._version():
            self.read()

    def _version(self) -> tuple[int, int]:
        return self.p.data_ptr(), self.p._version

    def check(self, grad: Tensor) -> None:
        require(
            grad.layout == torch.strided and (grad.dtype, grad.shape) == (self.host.dtype, self.host.shape),
            f"{_NAME}: the gradient of {self.name} is {plain(grad.dtype)} of shape {list(grad.shape)} and "
            f"{plain(grad.layout)}, but the parameter was {plain(self.host.dtype)} of shape {list(self.host.shape)} "
            "when the optimizer was made; make it after the model has its final dtype, and without sparse=True.",
        )


class _Link:
    """Copies between one device and the host, on a CUDA stream of their own; on other devices they are done at once."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._leaving: deque[tuple[Any, Tensor]] = deque()

    @contextmanager
    def _after_current(self) -> Iterator[bool]:
        """Inside the block work goes to the link's stream, after all that the current one has been given. Yields
        whether copies may go on while the host does something else."""
        if self._stream is None:
            yield False
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield True

    def to_host(self, target: Tensor, grad: Tensor, *, add: bool) -> None:
        """target, on the host, becomes grad, or with `add` their sum. grad belongs to the link from now on."""
        with self._after_current() as overlapped:
            if add:
                grad.add_(target.to(grad.device, non_blocking=overlapped))
            target.copy_(grad, non_blocking=overlapped)
        if self._stream is not None:
            self._leaving.append((self._stream.record_event(), grad))
            self._free(_IN_FLIGHT)

    def _free(self, keep: int) -> None:
        # The memory of a tensor goes back to the current stream, which must not write there before the copy has ended.
        # So the stream is told to wait, and then the tensor let go. With record_stream instead, memory would be free
        # again only when the host sees that the copy has ended, and as it runs ahead, gradients would pile up.
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
