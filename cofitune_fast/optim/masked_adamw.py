"""MaskedAdamW: AdamW with a soft mask, gradient clipping and bfloat16 weights in one fused pass per step."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from ..errors import CofituneError
from ..ops import grad_norm, masked_adamw_
from ..ops._checks import layout, plain, require
from ..ops.masked_adamw import MASK_MODES, STORAGES

_NAME = "MaskedAdamW"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_Named = tuple[str, torch.Tensor]


class MaskedAdamW(Optimizer):
    """AdamW (decoupled weight decay) whose step is damped per unit by a soft mask.

    `ops.masked_adamw_` states the formula and both mask modes. A step is: the global L2 norm of the raw gradients of
    all groups, then one fused pass per group. Nothing waits for the device: a norm that is not finite sets a flag there
    on which the pass leaves parameters and moments alone (the step is counted all the same).

    Args:
        params: (name, parameter) pairs, as `Region.apply` returns, or dicts {"params": pairs, "lr": ..., ...} with a
            group's own lr, betas, eps, weight_decay, mask_mode, storage or seed.
        max_grad_norm: clip the gradients to this global norm; None: do not clip.
        masks: name -> factors in [0, 1], broadcasting to the parameter as [out, 1], [1, in] or in full. A parameter
            without a mask is updated in full.
        mask_mode: "update" damps the step, decay included; "gradient" is the paper's mask on the gradient, which Adam
            nearly divides out.
        storage: "fp32" for float32 parameters, "bf16_sr" for bfloat16 ones (moments in float32, one stochastic
            rounding per step), "auto" as the parameter's dtype demands.
        seed: of the stochastic rounding; with the parameter's name, step and element it fixes the random bits.
        zero_grad_after: set the gradients to zero in the same pass, so that no `zero_grad()` is needed.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; see `ops.backends()`.

    Attributes:
        last_grad_norm: float32 0-d tensor on the parameters' device, the norm before clipping; None before a step.

    Raises:
        CofituneError: parameters without names, an unknown or unfitting mask, an option or dtype out of range.
    """

    def __init__(
        self,
        params: Iterable[_Named] | Iterable[dict[str, Any]],
        lr: float = 4e-5,
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
    ) -> None:
        require(max_grad_norm is None or max_grad_norm > 0,
                f"{_NAME}: max_grad_norm must be positive or None, not {max_grad_norm}.")
        self.max_grad_norm = max_grad_norm
        self.zero_grad_after = zero_grad_after
        self.backend = backend
        self.last_grad_norm: torch.Tensor | None = None
        self._clip: torch.Tensor | None = None
        self._given_masks = dict(masks or {})
        self._masks: dict[torch.Tensor, torch.Tensor] = {}
        params = list(params)
        require(bool(params), f"{_NAME}: there are no parameters to train; a region that selects some is needed.")
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, mask_mode=mask_mode, storage=storage,
                        seed=seed)
        super().__init__(params, defaults)
        unknown = sorted(set(self._given_masks) - set(self._by_name()))
        require(not unknown, f"{_NAME}: there are masks for {', '.join(unknown)}, which this optimizer does not train.")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group {"params": (name, parameter) pairs, ...options}; masks are those given to the constructor."""
        pairs = list(param_group["params"])
        require(
            all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs),
            f"{_NAME}: parameters must come as (name, parameter) pairs, as Region.apply or named_parameters give them.",
        )
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1} | set(names) & set(self._by_name()))
        require(not repeated, f"{_NAME}: the parameter {', '.join(repeated)} is given twice.")
        group = {**self.defaults, **param_group}
        _check_options(group)
        for name, p in pairs:
            _check_storage(name, p, group["storage"])
            if name in self._given_masks:
                self._masks[p] = _checked_mask(name, self._given_masks[name], p)
        super().add_param_group({**param_group, "params": pairs})

    def _by_name(self) -> dict[str, torch.Tensor]:
        return {name: p for group in self.param_groups for name, p in _pairs(group)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; returns what `closure` returns, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._clip is None:
            self.measure_grad_norm()
        clip, self._clip = self._clip, None
        grads = self._grads()
        for group in self.param_groups:
            for (storage, step), pairs in self._batches(group).items():
                params = [p for _, p in pairs]
                states = [self.state[p] for p in params]
                masked_adamw_(
                    params, [grads[p] for p in params], *([state[key] for state in states] for key in _MOMENTS),
                    [self._masks.get(p) for p in params],
                    lr=float(group["lr"]), betas=group["betas"], eps=group["eps"], weight_decay=group["weight_decay"],
                    step=step, clip=clip, mask_mode=group["mask_mode"], storage=storage, seed=group["seed"],
                    offsets=[_random_offset(name) for name, _ in pairs], zero_grad=self.zero_grad_after,
                    backend=self.backend,
                )
                for state in states:
                    state["step"] = step
        return loss

    @torch.no_grad()
    def measure_grad_norm(self) -> torch.Tensor:
        """The global L2 norm of the gradients as they are now (float32, 0-d, on the device), before clipping.

        The next `step` clips by this norm instead of measuring again: for training loops that log it beforehand.
        """
        self.last_grad_norm, self._clip = grad_norm(
            list(self._grads().values()), self.max_grad_norm, backend=self.backend
        )
        return self.last_grad_norm

    def _grads(self) -> dict[torch.Tensor, torch.Tensor]:
        return {p: _dense(name, p) for group in self.param_groups for name, p in _pairs(group) if p.grad is not None}

    def _batches(self, group: dict[str, Any]) -> dict[tuple[str, int], list[_Named]]:
        """A group's parameters that have a gradient, by storage and number of the step: one fused call each."""
        batches = defaultdict(list)
        for name, p in _pairs(group):
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["step"] = 0
                for key in _MOMENTS:
                    state[key] = torch.zeros(p.shape, dtype=torch.float32, device=p.device)
            batches[_storage_of(p), state["step"] + 1].append((name, p))
        return batches

    def state_dict(self) -> dict[str, Any]:
        """{"state": {name: {"exp_avg", "exp_avg_sq", "step"}}, "param_groups": [{"params": [names], ...options}]}.

        Tensors are the optimizer's own, not copies. Masks are not part of it: give them to the constructor.
        """
        groups = []
        for group in self.param_groups:
            options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
            groups.append({**options, "params": list(group["param_names"])})
        state = {name: dict(self.state[p]) for name, p in self._by_name().items() if p in self.state}
        return {"state": state, "param_groups": groups}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over options and states; with the same masks and data the run then goes on as if never interrupted.

        Raises:
            CofituneError: groups, names or shapes are not those of this optimizer; nothing has been changed then.
        """
        saved, own = state_dict["param_groups"], self.param_groups
        require(len(saved) == len(own),
                f"{_NAME}: the state has {len(saved)} parameter groups, but this optimizer has {len(own)}.")
        for theirs, ours in zip(saved, own, strict=True):
            missing = sorted(set(ours["param_names"]) - set(theirs["params"]))
            foreign = sorted(set(theirs["params"]) - set(ours["param_names"]))
            require(
                not (missing or foreign),
                f"{_NAME}: the state belongs to other parameters (it lacks: {', '.join(missing) or 'none'}; it has "
                f"besides: {', '.join(foreign) or 'none'}).",
            )
        by_name = self._by_name()
        for name, state in state_dict["state"].items():
            require(name in by_name, f"{_NAME}: the state of {name} belongs to no parameter of this optimizer.")
            shape = by_name[name].shape
            for key in _MOMENTS:
                require(key in state and state[key].shape == shape,
                        f"{_NAME}: {key} of {name} is missing in the state or not of shape {list(shape)}.")
        for theirs, ours in zip(saved, own, strict=True):
            ours.update({key: value for key, value in theirs.items() if key != "params"})
        self.state.clear()
        for name, state in state_dict["state"].items():
            p = by_name[name]
            own_state = self.state[p] = {"step": int(state["step"])}
            for key in _MOMENTS:
                own_state[key] = state[key].to(device=p.device, dtype=torch.float32, copy=True).contiguous()


def _pairs(group: dict[str, Any]) -> Iterable[_Named]:
    return zip(group["param_names"], group["params"], strict=True)


def _dense(name: str, p: torch.Tensor) -> torch.Tensor:
    if p.grad.is_sparse:
        raise CofituneError(f"{_NAME}: the gradient of {name} is sparse; set sparse=False on its embedding.")
    if not p.grad.is_contiguous():
        p.grad = p.grad.contiguous()
    return p.grad


def _storage_of(p: torch.Tensor) -> str:
    return {dtype: storage for storage, dtype in STORAGES.items()}[p.dtype]


def _random_offset(name: str) -> int:
    """A parameter's place in the 64-bit space of random counters, from its name: the same in every region and order."""
    return (int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) >> 2) << 32


def _check_options(group: dict[str, Any]) -> None:
    require(all(0 <= beta < 1 for beta in group["betas"]),
            f"{_NAME}: betas must lie in [0, 1), but they are {tuple(group['betas'])}.")
    for key in ("lr", "eps", "weight_decay"):
        require(group[key] >= 0, f"{_NAME}: {key} must not be negative, but it is {group[key]}.")
    require(group["mask_mode"] in MASK_MODES,
            f"{_NAME}: mask_mode must be 'update' or 'gradient', not {group['mask_mode']!r}.")
    require(group["storage"] in ("auto", *STORAGES),
            f"{_NAME}: storage must be 'auto', 'fp32' or 'bf16_sr', not {group['storage']!r}.")


def _check_storage(name: str, p: torch.Tensor, storage: str) -> None:
    require(
        p.dtype in STORAGES.values(),
        f"{_NAME}: {name} is {plain(p.dtype)}, which cannot be trained here; load the model in bfloat16 or float32.",
    )
    require(
        storage == "auto" or STORAGES[storage] == p.dtype,
        f"{_NAME}: storage {storage!r} does not fit {name}, which is {plain(p.dtype)}; use storage='auto'.",
    )
    require(p.is_contiguous(), f"{_NAME}: {name} is not contiguous in memory; make it so before training.")


def _checked_mask(name: str, mask: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    layout(_NAME, f"the mask of {name}", mask, p.shape)
    mask = mask.detach().to(device=p.device, dtype=torch.float32).contiguous()
    require(bool(((mask >= 0) & (mask <= 1)).all()), f"{_NAME}: the mask of {name} has values outside [0, 1].")
    return mask
