"""Parameters that step together, with everything that a step needs except the gradients, kept from step to step.

With hundreds of small tensors most of the time would be spent in Python. So tensors are checked only when they are new
or have moved. An ordinary step compares addresses and looks only at the gradients.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from ..errors import CofituneError
from ..ops._adamw_call import AdamwCall, check, table
from ..ops._checks import plain, require
from ..ops._storage import STORAGES
from ..ops.masked_adamw import run_checked
from .arguments import NAME, Factors
from .sharding import distributed, first_element, local, spread


class Batch:
    """Parameters of one group and storage, at the same step, on one device and one device mesh.

    names, params, states: lists of one length. A state is made by `state.new`.
    factors: name -> factors, shared with the optimizer. An entry is replaced if its parameter has moved.
    pull_kind: the kind of all pulls.
    """

    def __init__(self, names: list[str], params: list[Tensor], states: list[dict[str, Any]],
                 factors: dict[str, Factors], pull_kind: str) -> None:
        self.names, self.params, self.states = names, params, states
        self.storage = states[0]["storage"]
        self.spread = spread(params[0])
        form = STORAGES[self.storage]
        self._kept = ["exp_avg", "exp_avg_sq", *["remainder"] * form.remainder, *["scale"] * form.scaled]
        self._factors, self._pull_kind = factors, pull_kind
        self._look_up()

    def _look_up(self) -> None:
        for name, p in zip(self.names, self.params, strict=True):
            self._factors[name] = self._factors[name].like(p)
        parts = [[None if x is None else local(x) for x in self._factors[name]] for name in self.names]
        self._masks, self._anchors, self._pulls = map(list, zip(*parts, strict=True))
        self._offsets = [_random_offset(name) + first_element(p)
                         for name, p in zip(self.names, self.params, strict=True)]
        self._forms = _forms(self.params)
        self._addresses: list[list[int]] | None = None
        self._table: tuple[list[int], ...] | None = None

    def count_on_device(self) -> None:
        """Make the parameters share one count of steps on their device, int64 0-d."""
        step = torch.zeros((), dtype=torch.int64, device=self.params[0].device)
        for state in self.states:
            state["step"] = step

    def gradients(self) -> list[Tensor]:
        """Check and return the gradients, or their parts on this rank, contiguous."""
        grads = [p.grad for p in self.params]
        for name, grad in zip(self.names, grads, strict=True):
            if grad is None:
                raise CofituneError(f"{NAME}: {name} has no gradient; with capturable=True every parameter needs one "
                                    "at every step.")
        if _forms(grads) != self._forms:
            self._check_forms(grads)
            self._look_up()  # the parameters have moved, and their gradients with them
        if self.spread is not None:
            self._check_placements(grads)
        grads = self._local(grads)
        for index, grad in enumerate(grads):
            memoryless = not torch.compiler.is_compiling() and grad._is_zerotensor()  # its address is 0
            if memoryless or not grad.is_contiguous():
                p = self.params[index]
                grads[index] = torch.zeros_like(p, memory_format=torch.contiguous_format) if memoryless else (
                    grad.contiguous())
                p.grad = distributed(grads[index], p, p.shape)
        return grads

    def step(self, group: dict[str, Any], grads: list[Tensor], clip: Tensor, zero_grad: bool, backend: str) -> None:
        """Run one fused pass over all parameters, and count it in their states."""
        count, lr = self.states[0]["step"], group["lr"]
        on_device = isinstance(count, Tensor)
        if not isinstance(lr, Tensor):  # a fill on the device: a CUDA graph cannot capture a copy from the host
            lr = torch.full((), lr, dtype=torch.float64, device=count.device if on_device else None)
        kept = {key: self._local([state[key] for state in self.states]) for key in self._kept}
        params = self._local(self.params)
        # The fused pass wants contiguous tensors; a parameter that is a part of a tensor may have gaps.
        contiguous = [p.contiguous() for p in params]
        call = AdamwCall(
            params=contiguous, grads=grads, exp_avgs=kept["exp_avg"], exp_avg_sqs=kept["exp_avg_sq"],
            remainders=kept.get("remainder", []), scales=kept.get("scale", []), masks=self._masks,
            anchors=self._anchors, pulls=self._pulls, clip=clip, lr=lr.detach().reshape(()).double(),
            step=count if on_device else torch.tensor(count + 1), beta1=group["betas"][0], beta2=group["betas"][1],
            eps=group["eps"], weight_decay=group["weight_decay"], mask_mode=group["mask_mode"],
            pull_kind=self._pull_kind, storage=self.storage, seed=group["seed"], offsets=self._offsets,
            zero_grad=zero_grad,
        )
        if not torch.compiler.is_compiling():
            call = self._prepared(call)
        if on_device:
            count.add_(1)
        run_checked(call, backend)
        for p, stepped in zip(params, contiguous, strict=True):
            if stepped is not p:
                p.copy_(stepped)
        if self.spread is not None:
            torch.autograd.graph.increment_version(self.params)
        if not on_device:
            for state in self.states:
                state["step"] = count + 1

    def _local(self, tensors: list[Tensor]) -> list[Tensor]:
        return tensors if self.spread is None else [local(tensor) for tensor in tensors]

    def _prepared(self, call: AdamwCall) -> AdamwCall:
        written = (call.params, call.exp_avgs, call.exp_avg_sqs, call.remainders, call.scales)
        addresses = [list(map(Tensor.data_ptr, tensors)) for tensors in written]
        if addresses != self._addresses:
            check(call)
            self._addresses, self._table = addresses, table(call)
        return call._replace(prepared=self._table)

    def _check_forms(self, grads: list[Tensor]) -> None:
        for name, p, grad in zip(self.names, self.params, grads, strict=True):
            require(grad.layout == torch.strided,
                    f"{NAME}: the gradient of {name} is sparse; set sparse=False on its embedding.")
            require(
                _forms([grad]) == _forms([p]),
                f"{NAME}: {name} is {plain(p.dtype)} of shape {list(p.shape)} on {p.device}, but its gradient is "
                f"{plain(grad.dtype)} of shape {list(grad.shape)} on {grad.device}.",
            )
            require(STORAGES[self.storage].weight == p.dtype,
                    f"{NAME}: {name} has become {plain(p.dtype)}, which its storage {self.storage!r} cannot take; set "
                    "the dtype before the first step.")

    def _check_placements(self, grads: list[Tensor]) -> None:
        for name, grad in zip(self.names, grads, strict=True):
            require(spread(grad) == self.spread,
                    f"{NAME}: the gradient of {name} is distributed as {getattr(grad, 'placements', 'a whole')}, but "
                    f"the parameter as {self.spread[1]}.")


def _forms(tensors: list[Tensor]) -> list[tuple[Any, ...]]:
    return [(x.dtype, x.shape, x.device, x.layout) for x in tensors]


def _random_offset(name: str) -> int:
    """First 64-bit random counter of a parameter. It depends on the name alone, not on region or order."""
    return (int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) >> 2) << 32
