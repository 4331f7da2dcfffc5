"""MaskedAdamW: AdamW with a soft mask, a pull, gradient clipping and small states in one fused pass per step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from ..ops._checks import require
from . import state as states
from .arguments import NAME, Factors, Given, check_options, named_pairs, resolved_storage
from .batch import Batch
from .pull import Pull
from .sharding import global_grad_norm, spread

_Named = tuple[str, torch.Tensor]


class MaskedAdamW(Optimizer):
    """AdamW (decoupled weight decay) whose step is damped per unit by a soft mask.

    `ops.masked_adamw_` states the formula, both mask modes and the storage formats. A step is: the global L2 norm of
    the raw gradients of all groups, then one fused pass per group. Nothing waits for the device: a norm that is not
    finite sets a flag there on which the pass leaves parameters and states alone; the step counts all the same.
    bfloat16 needs no loss scaling, so torch.amp.GradScaler has no place here.

    Parameters may be DTensors with placements Shard(0) or Replicate (FSDP2, `fully_shard`): each rank updates its rows,
    the norm is that of all shards, and the bits are those of an unsharded run with the same gradients and norm.

    Args:
        params: (name, parameter) pairs, as `Region.apply` returns, or dicts {"params": pairs, "lr": ..., ...} with a
            group's own lr, betas, eps, weight_decay, mask_mode, storage or seed.
        lr: a number or a tensor of one element, which schedulers change in place. A float32 tensor rounds the number;
            with capturable it should lie on the parameters' device.
        max_grad_norm: clip the gradients to this global norm; None: do not clip.
        masks: name -> factors in [0, 1] as float32, or uint8 in units of 1/255, broadcasting to the parameter as
            [out, 1], [1, in] or in full. A parameter without a mask is updated in full.
        mask_mode: "update" damps the step, decay and pull included; "gradient" is the paper's mask on the gradient,
            which Adam nearly divides out.
        storage: "auto" is "fp32" for float32 parameters and "bf16_sr" for bfloat16 ones. These may also have
            "bf16_split", "bf16" or "int8".
        seed: of the stochastic rounding; with the parameter's name, step and element it fixes the random bits.
        zero_grad_after: set the gradients to zero in the same pass, so that no `zero_grad()` is needed.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; see `ops.backends()`.
        pull: draws the parameters back to their initial values (L2-SP, L1-SP, EWC); see `Pull`. It costs a copy of
            them, 2 (bfloat16) or 4 bytes per parameter, which is saved with the state unless it was given.
        capturable: count steps on the device, so that a step works under torch.compile (give lr as a tensor) and
            CUDA-graph capture. States are made at once, and every parameter needs a gradient at every step.

    Masks and initial weights are used in place where they have the right device and dtype. For a DTensor they and a
    pull's units may be whole or DTensors placed like it.

    Attributes:
        last_grad_norm: float32 0-d tensor on the parameters' device, the norm before clipping; None before a step.

    Raises:
        CofituneError: parameters without names, unknown or unfitting tensors, an option or dtype out of range.
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
        # A dictionary, as torch.compile forgets what a compiled step assigns to attributes of an optimizer.
        self._measured: dict[str, torch.Tensor | None] = {"norm": None, "clip": None}
        require(pull is None or isinstance(pull, Pull), f"{NAME}: pull must be a Pull or None, not {pull!r}.")
        self._given = Given(masks or {}, pull)
        self._factors: dict[str, Factors] = {}
        self._batches: list[tuple[list[int] | None, list[Batch]]] = []  # per group: whose gradients, and how to step
        params = list(params)
        require(bool(params), f"{NAME}: there are no parameters to train; a region that selects some is needed.")
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, mask_mode=mask_mode, storage=storage,
                        seed=seed)
        super().__init__(params, defaults)
        self._given.check_names(self._by_name())

    @torch.no_grad()
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group {"params": (name, parameter) pairs, ...options}.

        Masks are for parameters given to the constructor; so is a pull with units or initial weights by name, while one
        without holds for later groups too.
        """
        pairs = named_pairs(param_group)
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1} | set(names) & set(self._by_name()))
        require(not repeated, f"{NAME}: the parameter {', '.join(repeated)} is given twice.")
        group = {**self.defaults, **param_group}
        check_options(group)
        for name, p in pairs:
            resolved_storage(name, p, group["storage"])
            self._factors[name] = self._given.of(name, p)
        super().add_param_group({**param_group, "params": pairs})
        group = self.param_groups[-1]
        self._batches.append((None, self._make_batches(group, _pairs(group)) if self.capturable else []))
        for batch in self._batches[-1][1]:
            batch.count_on_device()

    def _by_name(self) -> dict[str, torch.Tensor]:
        return {name: p for group in self.param_groups for name, p in _pairs(group)}

    @property
    def last_grad_norm(self) -> torch.Tensor | None:
        return self._measured["norm"]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; returns what `closure` returns, if there is one."""
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
        """The global L2 norm of the gradients as they are now (float32, 0-d, on the device), before clipping.

        The next `step` clips by this norm instead of measuring again: for training loops that log it beforehand.
        `zero_grad` and `load_state_dict` forget it.
        """
        return self._measure(self._ready())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as torch's optimizers do, and forget the norm measured for the next step."""
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
        """Per batch its group and gradients."""
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
        """Make all states now and not at the first step: torch.distributed.checkpoint.load fills those it finds."""
        for group in self.param_groups:
            for name, p in _pairs(group):
                self._state(group, name, p)

    def state_dict(self) -> dict[str, Any]:
        """{"state": {name: {"step", "storage", "exp_avg", "exp_avg_sq", ...}}, "param_groups": [{"params": [names],
        ...options}]}: of the states what `ops._storage.new_state` lists, and with a pull to weights as they
        were when the optimizer was made also these, "anchor".

        Tensors are the optimizer's own, not copies. Masks and the rest of a pull are not part of it: give them to the
        constructor. For DTensor parameters states are DTensors, as torch.distributed.checkpoint takes them.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state = {name: self._entry(name, self.state[p]) for name, p in self._by_name().items() if p in self.state}
        state_dict = {"state": state, "param_groups": list(map(states.options, self.param_groups))}
        return self._through(self._optimizer_state_dict_post_hooks, state_dict)

    def _entry(self, name: str, state: dict[str, Any]) -> dict[str, Any]:
        anchor = self._anchor(name)
        return dict(state) if anchor is None else {**state, "anchor": anchor}

    def _anchor(self, name: str) -> torch.Tensor | None:
        """What belongs to a saved state because nobody else has it."""
        pull = self._given.pull
        return self._factors[name].anchor if pull is not None and pull.initial is None else None

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over options and states; with the same masks and data the run then goes on as if never interrupted.

        Tensors are copied bit for bit into the optimizer's own. An lr that is a tensor here stays one.

        Raises:
            CofituneError: groups, names, shapes or storages are not those of this optimizer; nothing has been changed
                then.
        """
        state_dict = self._through(self._optimizer_load_state_dict_pre_hooks, dict(state_dict))
        saved, by_name = state_dict["state"], self._by_name()
        states.check_groups(state_dict["param_groups"], self.param_groups)
        unknown = sorted(set(saved) - set(by_name))
        require(not unknown, f"{NAME}: the state of {', '.join(unknown)} belongs to no parameter of this optimizer.")
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
        if not self.capturable:  # steps may differ now
            self._batches = [(None, [])] * len(self.param_groups)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _through(self, hooks: Mapping[int, Callable[..., Any]], state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state dict after registered hooks, each of which may return another one, as in torch."""
        for hook in hooks.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    def __getstate__(self) -> dict[str, Any]:
        """What a deep copy takes along: all but hooks, wrappers that a scheduler has put over methods, and a measured
        norm, whose gradients are not copied either."""
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
