"""MaskedAdamW: AdamW with a soft mask, a pull, gradient clipping and small states in one fused pass per step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from ..ops._checks import require
from . import state as states
from .arguments import (
    NAME,
    Factors,
    Given,
    check_once,
    check_options,
    given_parameters,
    named_pairs,
    resolved_storage,
    state_key,
)
from .batch import Batch
from .pull import Pull
from .sharding import global_grad_norm, spread

_Named = tuple[str, torch.Tensor]


class MaskedAdamW(Optimizer):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) with a soft mask that damps each unit's step.

    `ops.masked_adamw_` has the formula, both mask modes and the storage formats. A step computes the global L2 norm of
    the raw gradients of all groups, and then runs one fused pass per group. It never synchronises with the device. If
    the norm is not finite, a flag on the device makes the pass leave parameters and states unchanged; the step still
    counts. torch.amp.GradScaler works as with every torch optimizer, and leaves such a step out; bfloat16 needs none.

    Parameters may be DTensors with placements Shard(0) or Replicate (FSDP2, `fully_shard`). Each rank updates its rows,
    and the norm is that of all shards. The bits are those of an unsharded run with the same gradients and norm.

    Args:
        params: (name, parameter) pairs, as returned by `regions.apply`, or dicts {"params": pairs, "lr": ..., ...} with
            a group's own lr, betas, eps, weight_decay, mask_mode, storage or seed. Parameters without names are
            numbered in their order, in state dicts by 0, 1, ... as torch's optimizers do; masks, and a pull's units and
            initial weights, need names.
        lr: a number, or a one-element tensor that schedulers change in place. A float32 tensor rounds the number; with
            capturable it should be on the parameters' device.
        betas: decay rates of the first and the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay, times lr.
        max_grad_norm: clip the gradients to this global L2 norm; None does not clip.
        masks: {name: factors in [0, 1]}, float32, or uint8 in units of 1/255, that broadcast to the parameter as [out,
            1], [1, in] or in full. A parameter without a mask is updated in full.
        mask_mode: "update" damps the step, decay and pull included; "gradient" is the paper's mask on the gradient,
            which Adam nearly divides out.
        storage: "auto" is "fp32" for float32 parameters and "bf16_sr" for bfloat16 ones. bfloat16 parameters also take
            "bf16_split", "bf16" or "int8".
        seed: seed of the stochastic rounding. With the parameter's name, the step and the element it determines the
            random bits.
        zero_grad_after: set the gradients to zero in the same pass, so that no `zero_grad()` is needed.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; see `ops.backends()`.
        pull: draws the parameters back to their initial values (L2-SP, L1-SP, EWC); see `Pull`. It costs a copy of
            them, 2 (bfloat16) or 4 bytes per parameter, which is saved with the state unless the caller provided it.
        capturable: count steps on the device, so that a step works under torch.compile (with lr as a tensor) and
            CUDA-graph capture. States are made at once, and every parameter needs a gradient at every step.

    Masks and initial weights are used in place where they have the right device and dtype. For a DTensor, masks,
    initial weights and the units of a pull may be full tensors or DTensors with the same placement.

    Attributes:
        last_grad_norm: float32 0-d tensor on the parameters' device, the norm before clipping; None before a step.

    Raises:
        CofituneError: a parameter or a name is given twice, only some parameters have names, a tensor is unknown or
            does not fit, or an option or dtype is out of range.
    """

    @torch.no_grad()
    def __init__(
        self,
        params: Iterable[_Named] | Iterable[dict[str, Any]],
        lr: float | torch.Tensor = 4e-5,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        max_grad_norm: float | None = 1.0,
        masks: Mapping[str, torch.Tensor] | None = None,
        mask_mode: str = "update",
        storage: str = "auto",
        seed: int = 0,
        zero_grad_after: bool = False,
        backend: str = "auto",
        pull: Pull | None = None,
        capturable: bool = False,
    ) -> None:
        require(max_grad_norm is None or max_grad_norm > 0,
                f"{NAME}: max_grad_norm must be positive or None, not {max_grad_norm}.")
        self.max_grad_norm = max_grad_norm
        self.zero_grad_after = zero_grad_after
        self.backend = backend
        self.capturable = capturable
        # A dictionary, because assignments to the optimizer's attributes are lost in a step under torch.compile.
        self._measured: dict[str, torch.Tensor | None] = {"norm": None, "clip": None}
        require(pull is None or isinstance(pull, Pull), f"{NAME}: pull must be a Pull or None, not {pull!r}.")
        self._given = Given(masks or {}, pull)
        self._factors: dict[str, Factors] = {}
        self._batches: list[tuple[list[int] | None, list[Batch]]] = []  # per group: parameters with gradients, batches
        params = given_parameters(params)
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, mask_mode=mask_mode, storage=storage,
                        seed=seed)
        super().__init__(params, defaults)
        self._given.check_names(self._by_name())

    @torch.no_grad()
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group {"params": (name, parameter) pairs or parameters, as in the constructor, ...options}.

        Masks apply only to parameters given to the constructor, and so does a pull with units or initial weights by
        name. A pull without them also applies to later groups.
        """
        known = self._by_name()
        pairs = named_pairs(param_group, known)
        check_once(pairs, known)
        group = {**self.defaults, **param_group}
        check_options(group)
        factors = {}
        for name, p in pairs:
            if p.requires_grad:
                resolved_storage(name, p, group["storage"])
            factors[name] = self._given.of(name, p)
        super().add_param_group({**param_group, "params": [p for _, p in pairs], "param_names": list(factors)})
        self._factors.update(factors)
        group = self.param_groups[-1]
        self._batches.append((None, self._make_batches(group, _pairs(group)) if self.capturable else []))
        for batch in self._batches[-1][1]:
            batch.count_on_device()

    def __repr__(self) -> str:
        """Return the options of the groups as torch's optimizers do, without the long lists of names."""
        lines = super().__repr__().splitlines()
        kept = [line for line in lines if not line.startswith("    param_names: ")]
        return "\n".join([*kept[:-1], f"max_grad_norm: {self.max_grad_norm}", ")"])

    def _by_name(self) -> dict[str, torch.Tensor]:
        return {name: p for group in self.param_groups for name, p in _pairs(group)}

    @property
    def last_grad_norm(self) -> torch.Tensor | None:
        return self._measured["norm"]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; returns the result of `closure`, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ready = self._ready()
        if self._measured["clip"] is None:
            self._measure(ready)
        clip, self._measured["clip"] = self._measured["clip"], None
        for group, batch, grads in ready:
            batch.step(group, grads, clip, self.zero_grad_after, self.backend)
        return loss

    @torch.no_grad()
    def measure_grad_norm(self) -> torch.Tensor:
        """Measure the global L2 norm of the current gradients before clipping: float32, 0-d, on the device.

        The next `step` clips by this norm instead of measuring again. This is for training loops that log the norm
        before the step. `zero_grad` and `load_state_dict` discard it.
        """
        return self._measure(self._ready())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients as torch's optimizers do, and discard the norm measured for the next step."""
        super().zero_grad(set_to_none)
        self._measured["clip"] = None

    def _measure(self, ready: list[tuple[dict[str, Any], Batch, list[torch.Tensor]]]) -> torch.Tensor:
        by_spread = defaultdict(list)
        for _, batch, grads in ready:
            by_spread[batch.spread] += grads
        measured = global_grad_norm(by_spread, self.max_grad_norm, self.backend)
        self._measured.update(norm=measured.norm, clip=measured.clip)
        return measured.norm

    def _ready(self) -> list[tuple[dict[str, Any], Batch, list[torch.Tensor]]]:
        """List (group, batch, gradients) for every batch."""
        ready = []
        for index, group in enumerate(self.param_groups):
            if not self.capturable:
                present = [id(p) if p.grad is not None else 0 for p in group["params"]]
                if present != self._batches[index][0]:
                    pairs = [(name, p) for name, p in _pairs(group) if p.grad is not None]
                    self._batches[index] = present, self._make_batches(group, pairs)
            ready += [(group, batch, batch.gradients()) for batch in self._batches[index][1]]
        return ready

    def _make_batches(self, group: dict[str, Any], pairs: Iterable[_Named]) -> list[Batch]:
        alike = defaultdict(list)
        for name, p in pairs:
            state = self._state(group, name, p)
            step = None if self.capturable else state["step"]
            alike[state["storage"], step, p.device, spread(p)].append((name, p, state))
        return [self._batch(*map(list, zip(*members, strict=True))) for members in alike.values()]

    def _batch(self, names: list[str], params: list[torch.Tensor], of_params: list[dict[str, Any]]) -> Batch:
        kind = "l2" if self._given.pull is None else self._given.pull.kind
        return Batch(names, params, of_params, self._factors, kind)

    def _state(self, group: dict[str, Any], name: str, p: torch.Tensor) -> dict[str, Any]:
        if p not in self.state:
            self.state[p] = states.new(p, resolved_storage(name, p, group["storage"]))
        return self.state[p]

    @torch.no_grad()
    def create_states(self) -> None:
        """Make all states now instead of at the first step, because torch.distributed.checkpoint.load fills existing
        ones.
        """
        for group in self.param_groups:
            for name, p in _pairs(group):
                if p.requires_grad:
                    self._state(group, name, p)

    def state_dict(self) -> dict[str, Any]:
        """Return the states by parameter name and the options of the groups.

        The format is {"state": {name: {"step", "storage", "exp_avg", "exp_avg_sq", ...}}, "param_groups": [{"params":
        [names], "param_names": [names], ...options}]}. Without names, numbers stand in their place, and there are no
        "param_names". The entries of a state are those of `ops._storage.new_state`. With a pull to the weights
        at construction, these weights are part of it as "anchor".

        Tensors are the optimizer's own, not copies. Masks and the rest of a pull are not included; give them to the
        constructor. For DTensor parameters states are DTensors, as torch.distributed.checkpoint takes them.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state = {state_key(name): self._entry(name, self.state[p])
                 for name, p in self._by_name().items() if p in self.state}
        state_dict = {"state": state, "param_groups": list(map(states.options, self.param_groups))}
        return self._through(self._optimizer_state_dict_post_hooks, state_dict)

    def _entry(self, name: str, state: dict[str, Any]) -> dict[str, Any]:
        anchor = self._anchor(name)
        return dict(state) if anchor is None else {**state, "anchor": anchor}

    def _anchor(self, name: str) -> torch.Tensor | None:
        """Return the initial weights if only the optimizer has them, so that they must be saved; else None."""
        pull = self._given.pull
        return self._factors[name].anchor if pull is not None and pull.initial is None else None

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load options and states; with the same masks and data the run then continues as if never interrupted.

        Tensors are copied bit for bit into the optimizer's own. An lr that is a tensor here stays one. States belong to
        parameters by name; if one of the two runs has none, by their order in each group.

        Raises:
            CofituneError: groups, names, shapes or storages are not those of this optimizer. Nothing has been changed
                then.
        """
        state_dict = self._through(self._optimizer_load_state_dict_pre_hooks, dict(state_dict))
        saved, by_name = states.by_name(state_dict, self.param_groups), self._by_name()
        own = {
            name: self.state.get(p) or states.new(p, resolved_storage(name, p, group["storage"]))
            for group in self.param_groups for name, p in _pairs(group) if self.capturable or name in saved
        }
        for name in saved:
            states.check_entry(name, saved[name], self._entry(name, own[name]))
        if self.capturable:
            for _, batches in self._batches:
                states.check_steps([batch.names for batch in batches], saved)
        for group, theirs in zip(self.param_groups, state_dict["param_groups"], strict=True):
            states.take_options(group, theirs)
        self.state.clear()
        for name, state in own.items():
            self.state[by_name[name]] = state
            states.fill(state, self._anchor(name), saved.get(name))
        self._measured["clip"] = None
        if not self.capturable:  # parameters of a batch may now be at different steps
            self._batches = [(None, [])] * len(self.param_groups)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _through(self, hooks: Mapping[int, Callable[..., Any]], state_dict: dict[str, Any]) -> dict[str, Any]:
        """Pass the state dict through registered hooks, each of which may return another one, as in torch."""
        for hook in hooks.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes for a deep copy.

        Left out are hooks, wrappers that a scheduler has put over methods, and a measured norm, because the gradients
        it belongs to are not copied.
        """
        kept = {key: value for key, value in vars(self).items()
                if not key.startswith("_optimizer_") and not hasattr(type(self), key)}
        return {**kept, "_measured": {**self._measured, "clip": None}, "_batches": []}

    @torch.no_grad()
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._batches = [(None, self._make_batches(group, _pairs(group)) if self.capturable else [])
                         for group in self.param_groups]


def _pairs(group: dict[str, Any]) -> Iterable[_Named]:
    return zip(group["param_names"], group["params"], strict=True)
