"""Deltas as PEFT adapters: the changed weights whole and exact, or as LoRA with the error stated."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import CofituneError, first_line
from ..files import atomic_folder, foreign_content, write_text
from ..models.adapter import require_peft
from ..models.fingerprint import named_parameters
from ..models.loading import LoadedModel, load_model, plain_folder
from ..progress import tracked
from .card import adapter_card
from .delta import load_delta, read_delta, restore, tensor_bytes

_NO_MODULE = "dummy-target-modules"  # PEFT's own name for an adapter that targets no module
_PREFIX = "base_model.model."
_TIED_BY_PEFT = ("embed_tokens", "lm_head")
_WAY_OUT = "leave the rank out, or merge the delta into an ordinary folder (cofitune merge)."


@dataclass(frozen=True)
class LowRank:
    """A weight as base + B A. rank: of B A. error: see `PeftExport`."""

    rank: int
    error: float


@dataclass(frozen=True)
class PeftExport:
    """An adapter that was written.

    form: "full" or "lora". whole: names of the tensors that are stored whole. low_rank: by name, the others.
    error: relative error of the whole change: the Frobenius norm of (merged - fine-tuned) over that of
        (fine-tuned - base), with all tensors taken as one vector. 0 if every weight is exact. Merged weights are
        rounded to the base's dtype, as PEFT does it.
    """

    path: Path
    form: str
    whole: list[str]
    low_rank: dict[str, LowRank] = field(default_factory=dict)
    error: float = 0.0

    @property
    def exact(self) -> bool:
        return self.error == 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "path": str(self.path), "exact": self.exact}

    def sentence(self) -> str:
        """Say in a sentence whether the adapter is exact, and else by how much it is not."""
        if not self.low_rank:
            return f"{len(self.whole)} tensors are stored whole: the merged model is the fine-tuned one, bit for bit."
        worst = max(self.low_rank, key=lambda name: self.low_rank[name].error)
        rank = max(entry.rank for entry in self.low_rank.values())
        if self.exact:
            return f"LoRA of rank {rank} holds the whole change: the merged model is the fine-tuned one, bit for bit."
        return (f"LoRA of rank {rank} leaves out {self.error:.2%} of the change (relative Frobenius error of all "
                f"tensors); at most {self.low_rank[worst].error:.2%}, of {worst}.")


@torch.no_grad()
def export_peft(
    base: str | Path | LoadedModel, delta: str | Path, out: str | Path, *, rank: int | None = None
) -> PeftExport:
    """Write a delta as a PEFT adapter: the folder `out` with adapter_config.json and adapter_model.safetensors.

    `PeftModel.from_pretrained(model, out)` loads it on the base, and `merge_and_unload` gives the fine-tuned model.
    Before the folder appears this is done once, and every weight that changed is compared.

    Args:
        base: a folder, hub id, GGUF file or adapter, or the result of load_model, which is left as it was.
        delta: the delta's folder.
        rank: None stores the modules of the region whole (PEFT's `modules_to_save`): exact, and as large as they are.
            A number stores the change of each linear layer as LoRA of at most that rank, see `low_rank`; everything
            else is stored whole. A rank that is at least the change's own gives the change up to rounding. The error is
            in the result and in the folder's README.md.

    Raises:
        CofituneError: as in load_delta; `out` is not empty; PEFT is missing, or has no form for the model.
        WriteFailed: the disk is full or read-only, or the like.
    """
    out, info, peft = Path(out), read_delta(delta), require_peft("Exporting a delta to PEFT")
    if rank is not None and rank < 1:
        raise CofituneError(f"The rank of the exported adapter is {rank}; it must be at least 1.")
    if out.exists() and (not out.is_dir() or foreign_content(out)):
        raise CofituneError(f"{out} exists and is not empty; choose another folder for the adapter.")
    if isinstance(base, LoadedModel):
        loaded, name = base, base.source
    else:
        name = str(plain_folder(base, dtype=info.base.dtype))
        loaded = load_model(name, dtype=info.base.dtype, device="cpu")
    model = loaded.model
    names = {place["parameter"] if (place := info.parts.get(one)) else one for one in info.parameters}
    before = {one: tensor.detach().clone() for one, tensor in named_parameters(model) if one in names}
    replaced = load_delta(model, delta, keep_base=True)
    try:
        changed = {one: tensor.detach().clone() for one, tensor in named_parameters(model) if one in before
                   and not torch.equal(tensor, before[one])}
        if not changed:
            raise CofituneError(f"The delta {delta} changes nothing in its base, so there is nothing to export.")
        linear = [one for one in changed if rank is not None and _is_linear(model, one, changed)]
        modules = _outermost(_module_of(one) for one in changed if one not in linear)
        linear = [one for one in linear if not any(one.startswith(f"{module}.") for module in modules)]
        low, factors = _factors(before, changed, linear, rank or 0)
        modules, tied, whole = _whole(model, modules)
        tensors = {_PREFIX + one: tensor.detach().cpu().contiguous().clone()
                   for one, tensor in (factors | whole).items()}
    finally:
        restore(model, replaced or {}, info.parts)
    _check_modules(model, modules)
    ranks = {_module_of(one): entry.rank for one, entry in low.items()}
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", inference_mode=True, base_model_name_or_path=name, target_modules=[*ranks] or _NO_MODULE,
        modules_to_save=modules or None, r=max(ranks.values(), default=1), lora_alpha=max(ranks.values(), default=1),
        rank_pattern=ranks, alpha_pattern=ranks, **({"ensure_weight_tying": True} if tied else {}),
    )
    with atomic_folder(out, tensor_bytes(tensors.values())) as building:
        settings.save_pretrained(building)
        save_file(tensors, building / "adapter_model.safetensors", metadata={"format": "pt"})
        target = copy.deepcopy(model) if isinstance(base, LoadedModel) else model
        beside = {one: tensors[_PREFIX + one] for one in whole if one not in changed}
        low, error = _proved(peft, target, building, changed | beside, before, low)
        result = PeftExport(out, "full" if rank is None else "lora", sorted(changed.keys() - low.keys()), low, error)
        write_text(building / "README.md", adapter_card(asdict(info), result.to_dict(), result.sentence()))
    return result


def _proved(
    peft: Any, model: PreTrainedModel, folder: Path, wanted: Mapping[str, Tensor], before: Mapping[str, Tensor],
    low: Mapping[str, LowRank],
) -> tuple[dict[str, LowRank], float]:
    """Merge the adapter by PEFT into the base, and refuse it unless every weight is what was promised.

    Returns:
        `low` with the errors of PEFT's own merge, and the error of all changes; see `PeftExport`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            merged = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload().state_dict()
        except Exception as error:
            raise CofituneError(f"PEFT cannot load such an adapter of this model ({first_line(error)}); "
                                f"{_WAY_OUT}") from None
    measured: dict[str, LowRank] = {}
    missed = 0.0
    for name, tensor in wanted.items():
        found = merged.get(name)
        if name in low and found is not None:
            square = _square(found.float() - tensor.float())
            missed += square
            error = math.sqrt(square / _square(tensor.float() - before[name].float()))
            measured[name] = LowRank(low[name].rank, error)
            right = abs(error - low[name].error) <= 1e-3 + 1e-2 * low[name].error
        else:
            right = found is not None and torch.equal(found, tensor.to(found.device))
        if not right:
            raise CofituneError(f"PEFT makes another {name} of such an adapter than the fine-tuned one; {_WAY_OUT}")
    if missed:
        missed /= sum(_square(wanted[name].float() - old.float()) for name, old in before.items() if name in wanted)
    return measured, math.sqrt(missed)


def _factors(
    before: Mapping[str, Tensor], changed: Mapping[str, Tensor], linear: Collection[str], rank: int
) -> tuple[dict[str, LowRank], dict[str, Tensor]]:
    """Split the changes of linear layers into factors: ranks and errors, and the factors by name."""
    low: dict[str, LowRank] = {}
    factors: dict[str, Tensor] = {}
    for name in tracked(linear, "Factorising", "tensors"):
        old, new = before[name].float(), changed[name].float()
        second, first = low_rank(new - old, rank)
        merged = (old + second @ first).to(changed[name].dtype)
        low[name] = LowRank(len(first), math.sqrt(_square(merged.float() - new) / _square(new - old)))
        factors |= {f"{_module_of(name)}.lora_A.weight": first, f"{_module_of(name)}.lora_B.weight": second}
    return low, factors


def low_rank(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return B [m, r] and A [r, n], float32, with B A the best approximation of `change` [m, n] of rank r <= `rank`.

    r is the change's own rank if that is smaller: its singular values above the rounding errors of float32 in the
    largest. They come from a randomised decomposition with 8 more columns and 4 power iterations (Halko, Martinsson and
    Tropp, SIAM Review 53, 2011), so that B A is the best approximation up to a small fraction of its error.
    """
    with torch.random.fork_rng(devices=[change.device] if change.is_cuda else []):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(change, min(rank + 8, *change.shape), niter=4)
    own = int((values > values[0] * max(change.shape) * torch.finfo(torch.float32).eps).sum())
    kept = max(1, min(rank, own))
    root = values[:kept].sqrt()
    return left[:, :kept] * root, (right[:, :kept] * root).T


def _square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def _is_linear(model: nn.Module, name: str, changed: Collection[str]) -> bool:
    """True for the weight of a linear layer whose bias did not change, as PEFT cannot store one of the two whole."""
    module = model.get_submodule(_module_of(name))
    return type(module) is nn.Linear and name.endswith(".weight") and f"{_module_of(name)}.bias" not in changed


def _outermost(modules: Iterable[str]) -> list[str]:
    """Leave out modules inside others of the list, as these are stored with all that they hold."""
    kept: list[str] = []
    for name in sorted(set(modules)):
        if not any(name.startswith(f"{outer}.") for outer in kept):
            kept.append(name)
    return kept


def _check_modules(model: nn.Module, modules: Collection[str]) -> None:
    """Refuse what PEFT would read otherwise: it takes every module whose name ends as one of the list."""
    if "" in modules:
        raise CofituneError(f"The delta changes a tensor of the model itself and of none of its modules, for which "
                            f"PEFT has no form; {_WAY_OUT}")
    for name, _ in model.named_modules():
        if name not in modules and (found := next((one for one in modules if name.endswith(one)), None)):
            raise CofituneError(f"PEFT cannot store {found} without {name}, whose name ends likewise; {_WAY_OUT}")


def _whole(model: PreTrainedModel, modules: Collection[str]) -> tuple[list[str], bool, dict[str, Tensor]]:
    """Modules to store, whether PEFT is to tie their copies, and all their tensors by name.

    A tensor that is tied to one of them is stored too. PEFT ties the embedding and the head where their names are the
    usual ones; elsewhere the module of the tied tensor is stored as a copy.
    """
    state = model.state_dict()
    inside = {name for name in state if any(name.startswith(f"{module}.") for module in modules)}
    own = {state[name].data_ptr() for name in inside}
    tied = {name for name in state if name not in inside and state[name].data_ptr() in own}
    usual = all(_module_of(name).rpartition(".")[2] in _TIED_BY_PEFT for name in state if name in tied
                or (name in inside and state[name].data_ptr() in {state[one].data_ptr() for one in tied}))
    copies = [] if usual else [_module_of(name) for name in tied]
    return sorted({*modules, *copies}), bool(tied) and usual, {name: state[name] for name in sorted(inside | tied)}


def _module_of(parameter: str) -> str:
    return parameter.rpartition(".")[0]
