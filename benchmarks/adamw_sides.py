"""The contestants of the AdamW contests: ours in every storage, torch's chains, other packages' optimizers.

All do the same work: gradients clipped to a global norm, scaled by a row mask, AdamW, gradients set to zero. Others
have no mask on the update, so theirs is on the gradient. Bytes are counted, not measured: each read and each write
that the passes make, per parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from bandwidth import in_place_sides
from contest import Side, backends
from memory_use import adds

from cofitune_fast.ops._storage import STORAGES
from cofitune_fast.optim import MaskedAdamW

OPTIONS = {"lr": 1e-5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
STEP, PASS = "whole step", "AdamW pass alone"
CHAIN = {torch.float32: 12 + 8 + 4, torch.bfloat16: 6 + 4 + 2}  # bytes of clip, mask and zero, beside AdamW's own


@dataclass(frozen=True)
class Workload:
    """Matrices of one shape, each with a gradient and, if `masked`, a row mask."""

    name: str
    matrices: int
    rows: int
    columns: int
    device: torch.device
    masked: bool = True

    @property
    def parameters(self) -> int:
        return self.matrices * self.rows * self.columns

    def make(self, dtype: torch.dtype) -> tuple[list[torch.nn.Parameter], list[torch.Tensor]]:
        shape = (self.rows, self.columns)
        params = [torch.nn.Parameter(torch.randn(shape, device=self.device, dtype=dtype).mul_(0.02))
                  for _ in range(self.matrices)]
        for p in params:
            p.grad = torch.zeros_like(p)
        count = self.matrices if self.masked else 0
        return params, [torch.rand(self.rows, 1, device=self.device).clamp(min=0.1) for _ in range(count)]

    def refill(self, params: Sequence[torch.nn.Parameter]) -> Callable[[], None]:
        """Gives the parameters a gradient again, one row for all rows: steps set it to zero."""
        fresh = torch.randn(self.columns, device=self.device).mul_(1e-3).to(params[0].dtype)
        grads = [p.grad for p in params]

        def fill() -> None:
            for grad in grads:
                grad.copy_(fresh)

        return fill


@dataclass
class Contestant:
    name: str
    step: Callable[[], object]
    update: Callable[[], object]  # the AdamW pass alone, casts that it needs included
    moved: float  # bytes per parameter of the pass
    chain: float  # bytes per parameter of all other passes of a step
    before_step: Callable[[], object]
    before_update: Callable[[], object]
    baseline: bool = False
    bound: list[Side] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)

    def sides(self, count: int, bound: str, device: torch.device) -> list[Side]:
        """The step and the pass, warmed up, with the memory that a step adds; counted for `count` parameters."""
        for work in (self.before_step, self.step, self.before_step, self.step, self.before_step):
            work()
        memory = self.memory | adds(self.step, device)
        common: dict[str, Any] = {"bound": bound, "baseline": self.baseline}
        return [Side(self.name, self.step, round((self.moved + self.chain) * count), STEP, self.before_step,
                     memory=memory, **common),
                Side(self.name, self.update, round(self.moved * count), PASS, self.before_update, **common)]


Builder = Callable[[Workload], list[Contestant]]


def ours(storage: str, modes: Sequence[str] = ("update",)) -> Builder:
    """MaskedAdamW in one storage: a contestant per backend and mask mode, which share parameters and states."""

    def build(workload: Workload) -> list[Contestant]:
        form = STORAGES[storage]
        params, masks = workload.make(form.weight)
        named = [(f"layer.{index}.weight", p) for index, p in enumerate(params)]
        by_name = {name: mask for (name, _), mask in zip(named, masks, strict=workload.masked)}
        optimizer = MaskedAdamW(named, masks=by_name, storage=storage, **OPTIONS)
        optimizer.create_states()
        refill = workload.refill(params)
        states = [optimizer.state[p] for p in params]
        kept = [[state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "remainder") if key in states[0]]
        streams = [[p.detach() for p in params], [p.grad for p in params], *kept]
        bound = in_place_sides(f"in place {storage}", streams, [True, False, *[True] * len(kept)])

        def contestant(backend: str, mode: str) -> Contestant:
            def prepare(zero_grad: bool) -> None:
                optimizer.backend, optimizer.zero_grad_after = backend, zero_grad
                optimizer.param_groups[0]["mask_mode"] = mode
                refill()

            def prepare_update() -> None:
                prepare(zero_grad=False)
                optimizer.measure_grad_norm()

            label = f"ours {storage}, {backend}" + (f", {mode} mask" if len(modes) > 1 else "")
            return Contestant(label, optimizer.step, optimizer.step, form.moved + 16 / 256 * form.scaled,
                              2 * form.weight.itemsize, lambda: prepare(zero_grad=True), prepare_update, bound=bound)

        return [contestant(backend, mode) for backend in backends("masked_adamw_", workload.device) for mode in modes]

    return build


def chain(
    name: str, dtype: torch.dtype, moved: int, make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
) -> Builder:
    """clip_grad_norm_ -> gradient times mask -> an optimizer's step -> zero_grad(set_to_none=False)."""

    def build(workload: Workload) -> list[Contestant]:
        params, masks = workload.make(dtype)
        masks = [mask.to(dtype) for mask in masks]
        optimizer, refill = make(params), workload.refill(params)

        def step() -> None:
            torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
            if masks:
                torch._foreach_mul_([p.grad for p in params], masks)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)

        return [Contestant(name, step, optimizer.step, moved, CHAIN[dtype], refill, refill, baseline=True)]

    return build


def torch_adamw(dtype: torch.dtype, way: str) -> Builder:
    """torch.optim.AdamW, `way` "fused" or "foreach" (whose many passes are counted as one)."""
    return chain(f"torch {way}", dtype, 7 * dtype.itemsize,
                 lambda params: torch.optim.AdamW(params, **{way: True}, **OPTIONS))


def torch_mixed(workload: Workload) -> list[Contestant]:
    """bfloat16 weights with float32 states as torch users do it: float32 copies are trained and copied back."""
    params, masks = workload.make(torch.bfloat16)
    copies = [torch.nn.Parameter(p.detach().float()) for p in params]
    for copy in copies:
        copy.grad = torch.zeros_like(copy)
    optimizer, refill = torch.optim.AdamW(copies, fused=True, **OPTIONS), workload.refill(params)
    grads, weights = [p.grad for p in params], [p.detach() for p in params]

    def update(between: Callable[[], object] = lambda: None) -> None:
        torch._foreach_copy_([c.grad for c in copies], grads)
        between()
        optimizer.step()
        torch._foreach_copy_(weights, [c.detach() for c in copies])

    def clip_and_mask() -> None:
        torch.nn.utils.clip_grad_norm_(copies, 1.0, foreach=True)
        torch._foreach_mul_([c.grad for c in copies], masks)

    def step() -> None:
        update(clip_and_mask)
        torch._foreach_zero_(grads)

    return [Contestant("torch, fp32 copies", step, update, 28 + 6 + 6, 12 + 8 + 2, refill, refill, baseline=True)]


def bitsandbytes_8bit(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(params, **OPTIONS)


def torchao_8bit(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    from torchao.optim import AdamW8bit

    return AdamW8bit(params, bf16_stochastic_round=True, **OPTIONS)


def optimi_kahan(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    from optimi import AdamW

    return AdamW(params, kahan_sum=True, **OPTIONS)


@cache
def tell_once(sentence: str) -> None:
    print(sentence, flush=True)


def peer(name: str, moved: int, make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]) -> Builder:
    """An optimizer of another package, all in bfloat16; left out, with a sentence, where the package is not there."""
    build = chain(name, torch.bfloat16, moved, make)

    def build_if_there(workload: Workload) -> list[Contestant]:
        try:
            return build(workload)
        except ImportError as error:
            tell_once(f"{name} is left out: {error}")
            return []

    return build_if_there


PEERS = {"bitsandbytes AdamW8bit": peer("bitsandbytes AdamW8bit", 10, bitsandbytes_8bit),
         "torchao AdamW8bit": peer("torchao AdamW8bit", 10, torchao_8bit),
         "optimi AdamW, Kahan": peer("optimi AdamW, Kahan", 18, optimi_kahan)}
