"""Features that save time and memory with a model: decided by its structure, and by a trial of the model.

The structure says no where that is certain. Where it does not, a few tokens go through the model plainly and with the
feature, and the logits are compared; of tries in training mode too, as a layer may do there what it does not elsewhere.
So a family that nobody has tried before keeps its correct results, and loses at
most speed. A model without values, as in a plan, is decided by structure alone.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ..errors import CofituneError
from ..models.attention import longest_row, takes_sdpa, trie_attention, why_mixed_otherwise
from ..models.mode import evaluation_mode
from ..models.sharded import all_ranks, is_sharded, reshard
from ..regions import Layout, Region, resolve_layout
from .prefix import FrozenPrefix, learn_outputs, random_modules, randomness

HANDED_ON = ("prev_topk_indices", "prev_router_hidden_states", "block_states")
"""Arguments by which a layer gets more from the layers below than their states."""

ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-8}
COARSE = 0.05
"""Bounds on the relative difference of logits that are summed in another order: by dtype, and for all other dtypes."""
_NOISE = 4  # a model's logits may also differ by this many times what one rounding of its embeddings makes of them


@dataclass(frozen=True)
class Ability:
    """Whether a feature is used with a model. why_not: None if it is, else the reason in words."""

    why_not: str | None = None

    def __bool__(self) -> bool:
        return self.why_not is None


@dataclass(frozen=True)
class PrefixAbilities:
    """Features for the layers below a layer.

    cut: they can run without a graph. cache: their output can be stored, and then they need not run.
    width, dtype: of the states of one token at the layer's input; the width is mostly (hidden,).
    """

    cut: Ability
    cache: Ability
    width: tuple[int, ...]
    dtype: torch.dtype


def prefix_abilities(model: nn.Module, layer: int) -> PrefixAbilities:
    """Decide what can be done with the layers of `model` below `layer`. Collective for a sharded model."""
    return _once(model, ("prefix", layer), lambda inner: _prefix_abilities(inner, layer))


def frozen_prefix(model: nn.Module, region: Region) -> FrozenPrefix | None:
    """The layers below `region`; None if the embeddings are trained too, or if the layers cannot be cut off.

    Collective for a sharded model.
    """
    prefix = FrozenPrefix.of(model, region)
    if prefix is None:
        return None
    able = prefix_abilities(model, prefix.layer)
    prefix.width, prefix.dtype = able.width, able.dtype
    return prefix if able.cut else None


def why_not_cut(model: nn.Module, region: Region) -> str | None:
    """The reason why the layers below `region` run with a graph; None if they do not."""
    prefix = FrozenPrefix.of(model, region)
    return None if prefix is None else prefix_abilities(model, prefix.layer).cut.why_not


def trie_ability(model: nn.Module) -> Ability:
    """Whether rows that begin alike can be passed as a trie, see `models.attention`. Collective for a sharded model."""
    return _once(model, ("trie", _attention(model)), _trie_ability)


def takes_tries(model: nn.Module, longest: int) -> bool:
    """True if rows of up to `longest` tokens can be passed as a trie. Collective for a sharded model."""
    return longest <= longest_row(_inner(model)) and bool(trie_ability(model))


def checkpoint_ability(model: nn.Module) -> Ability:
    """Whether the activations of the model's layers can be computed again in the backward."""
    inner = _inner(model)
    able = inner.supports_gradient_checkpointing and any(
        hasattr(module, "gradient_checkpointing") for module in inner.modules())
    return Ability(None if able else f"transformers has none for {type(inner).__name__}")


def abilities(model: nn.Module, layer: int | None = None) -> dict[str, Ability]:
    """Feature -> whether it is used with `model`, for a region whose lowest layer is `layer` (default: the middle)."""
    if layer is None:
        layer = resolve_layout(model).num_layers // 2
    prefix = prefix_abilities(model, layer)
    cache, source = prefix.cache, randomness(model, FrozenPrefix(model, layer))
    if cache and source is not None:
        cache = Ability(f"the frozen layers are random in training: {source}")
    return {"prefix cut": prefix.cut, "prefix cache": cache, "trie": trie_ability(model),
            "gradient checkpointing": checkpoint_ability(model)}


def abilities_line(model: nn.Module, layer: int | None = None) -> str:
    """One line that names the features that are used with `model`, and the others with the reason; see `abilities`."""
    found = abilities(model, layer)
    line = "speed: " + (", ".join(name for name, ability in found.items() if ability) or "none")
    off = [f"{name} ({ability.why_not})" for name, ability in found.items() if not ability]
    return line + (f" | off: {'; '.join(off)}" if off else "")


# By structure ---------------------------------------------------------------------------------------------------------


def _prefix_by_structure(layout: Layout, layer: int) -> tuple[Ability, Ability]:
    if not layout.in_order:
        return (never := Ability("its layers run more than once")), never
    if layer == 0:
        return Ability(), Ability("no layer lies below the region")
    for index in range(layer):
        if any(getattr(module, "store_full_length_kv", False) for module in layout.decoder_layer(index).modules()):
            return Ability(), Ability(f"later layers read the keys and values of layer {index}")
    for index in range(layer, layout.num_layers):
        arguments = inspect.signature(layout.decoder_layer(index).forward).parameters
        if handed := [name for name in HANDED_ON if name in arguments]:
            return Ability(), Ability(f"layer {index} gets {handed[0]} from the layers below, beside their states")
    return Ability(), Ability()


def _trie_by_structure(model: nn.Module) -> Ability:
    try:
        layout = resolve_layout(model)
    except CofituneError:  # the whole model can be trained and scored all the same
        return Ability("its layers are not known")
    if any(block.kind == "mixer" for block in layout.blocks.values()):
        return Ability("linear attention, Mamba or convolution mixes its tokens")
    if not takes_sdpa(model):
        return Ability(f"its attention is {_attention(model)}, not sdpa")
    return Ability(why_mixed_otherwise(layout.decoder_layer(index) for index in range(layout.num_layers)))


# By trial -------------------------------------------------------------------------------------------------------------


class _Failed(Exception):
    """Says in words why a feature is off."""


def _prefix_abilities(model: nn.Module, layer: int) -> PrefixAbilities:
    layout = resolve_layout(model)
    cut, cache = _prefix_by_structure(layout, layer)
    form: Any = (layout.hidden_size,), model.get_input_embeddings().weight.dtype
    if not cut or layer == 0 or not _has_values(model):
        return PrefixAbilities(cut, cache, *form)
    call, real = _padded_batch(model)
    order: list[int] = []
    kept: list[Tensor] = []

    def plain() -> Tensor:
        order.clear()
        with _recording(layout, order), FrozenPrefix(model, layer) as prefix, prefix.keeping() as states:
            logits = _logits(model, call)
        kept[:] = states
        return logits[real]

    def cut_off() -> Tensor:
        logits = plain()
        if order != list(range(layout.num_layers)):
            raise _Failed("its layers do not run once each and in order")
        return logits

    def skipped(expected: Tensor) -> None:
        if kept[0].shape[:2] != real.shape:
            raise _Failed("its layers hand on more than one state per token")
        # The cache has no states of a row's last token, and rows that differ in it alone share theirs.
        first, second = (_logits(model, call)[row, :_SHARED] for row in (0, 1))
        if _far(second, first, _bound(model)):
            raise _Failed("its tokens see later ones")
        states = kept[0]
        if randomness(model, FrozenPrefix(model, layer)) is None:
            with _in_training(model):
                plain()
            if _far(kept[0][real], states[real], _bound(model)):
                raise _Failed("the frozen layers do something else in training")
        with FrozenPrefix(model, layer) as prefix, prefix.replaced_by(states):
            found = _logits(model, call)[real]
        # The same kernels run on the same numbers, so only kernels that differ from run to run may differ.
        if not torch.equal(found, expected) and _apart(found, expected) > 4 * _apart(plain(), expected):
            raise _Failed("the layers above need more than the states of those below")

    cut, logits = _tried(model, "the prefix cut", cut_off)
    if not cut:
        return PrefixAbilities(cut, cut, *form)
    if cache:
        cache, _ = _tried(model, "the prefix cache", lambda: skipped(logits))
        form = (tuple(kept[0].shape[2:]), kept[0].dtype) if cache else form
    return PrefixAbilities(cut, cache, *form)


def _trie_ability(model: nn.Module) -> Ability:
    ability = _trie_by_structure(model)
    if not ability or not _has_values(model):
        return ability
    call, real = _padded_batch(model)
    trie = _trie(call, real)
    random = random_modules(model.modules())

    def as_trie() -> None:
        for training in (False, True):
            with _in_training(model) if training else nullcontext(), trie_attention(model):
                expected = _logits(model, call)[real]
                found = _logits(model, trie)[0][trie["rows"]][real]
            if not training:
                bound = max(_bound(model), _NOISE * _apart_by(_after_a_rounding(model, call)[real], expected))
            if not (training and random) and _far(found, expected, bound):
                raise _Failed("it gives another result than padded rows" + (" in training" if training else ""))

    return _tried(model, "rows as a trie", as_trie)[0]


@contextmanager
def _in_training(model: nn.Module) -> Iterator[None]:
    """Context in training mode, without a trace in the random states. An outer `evaluation_mode` takes it back."""
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.train()
        yield
        model.eval()


def _bound(model: Any) -> float:
    return ROUNDING.get(model.get_input_embeddings().weight.dtype, COARSE)


def _far(found: Tensor, expected: Tensor, bound: float) -> bool:
    """True if logits or states [tokens, width] differ by more than rounding, which may send single tokens to other
    experts."""
    return _apart_by(found, expected) > bound


def _apart_by(found: Tensor, expected: Tensor) -> float:
    """Return the relative difference of logits or states [tokens, width] that three quarters of the tokens keep to."""
    found, expected = found.double().nan_to_num(), expected.double().nan_to_num()  # NaN equals NaN
    apart = (found - expected).norm(dim=-1) / (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    return apart.nan_to_num(0, math.inf).quantile(0.75).item()


def _after_a_rounding(model: nn.Module, call: dict[str, Tensor]) -> Tensor:
    """Return the logits if every second number of the embeddings' output is moved by one rounding of its dtype.

    How far they move is what rounding alone does to this model: a deep one in bfloat16 makes several per cent of it.
    """
    def move(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        factors = torch.ones(output.numel(), dtype=output.dtype, device=output.device)
        factors[::2] = 1 - torch.finfo(output.dtype).eps / 2
        return output * factors.view(output.shape)

    hook = model.get_input_embeddings().register_forward_hook(move)
    try:
        return _logits(model, call)
    finally:
        hook.remove()


def _tried(model: nn.Module, feature: str, trial: Callable[[], Any]) -> tuple[Ability, Any]:
    """Return whether `trial` runs to its end, and what it returns. The log says if not."""
    result, reason = None, None
    with evaluation_mode(model), torch.no_grad():
        try:
            result = trial()
        except _Failed as failed:
            reason = str(failed)
        except CofituneError as error:
            reason = str(error).partition(";")[0]
        except Exception as error:  # whatever a family's own code raises
            reason = f"its trial raised {type(error).__name__}"
        finally:
            reshard(model)
    if is_sharded(model) and not all_ranks(reason is None):
        reason = reason or "its trial failed on another rank"
    if reason is not None:
        logging.getLogger("cofitune_fast").warning(
            "For this %s model %s is off: %s.", model.config.get_text_config().model_type, feature, reason)
    return Ability(reason), result


def _logits(model: nn.Module, call: dict[str, Tensor]) -> Tensor:
    return model(**call, use_cache=False).logits


def _apart(one: Tensor, other: Tensor) -> float:
    return (one.double() - other.double()).abs().max().item()


@contextmanager
def _recording(layout: Layout, order: list[int]) -> Iterator[None]:
    """Context that notes in `order` the numbers of the layers as they run, and the forms of their outputs."""

    def note(index: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            order.append(index)
            learn_outputs(layer, output)

        return hook

    handles = [layout.decoder_layer(index).register_forward_hook(note(index)) for index in range(layout.num_layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_SHARED = 3  # tokens with which the first two rows below begin


def _padded_batch(model: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Return three rows that begin alike, as the model takes them, and bool [3, 7], which is True at their tokens.

    No random number is drawn, as the training after it would then be another one.
    """
    text = model.config.get_text_config()
    special = {value for config in (model.config, text) for name, value in config.to_dict().items()
               if name.endswith(("token_id", "token_index"))}
    usable = [token for token in range(min(250, text.vocab_size)) if token not in special]
    ids = [usable[(37 * place + 11) % len(usable)] for place in range(13)]
    device = model.get_input_embeddings().weight.device
    rows = torch.tensor([ids[:7], [*ids[:_SHARED], *ids[7:9], 0, 0], [*ids[:2], *ids[9:], 0]], device=device)
    real = torch.arange(7, device=device) < torch.tensor([[7], [5], [6]], device=device)
    return {"input_ids": rows, "attention_mask": real.long()}, real


def _trie(call: dict[str, Tensor], real: Tensor) -> dict[str, Tensor]:
    """The rows of `_padded_batch` as a trie, see `trie_attention`."""
    places: dict[tuple[int, ...], int] = {}
    rows = []
    for ids, length in zip(call["input_ids"].tolist(), real.sum(1).tolist(), strict=True):
        path = [places.setdefault(tuple(ids[:end]), len(places)) for end in range(1, length + 1)]
        rows.append(path + [path[-1]] * (real.shape[1] - length))
    flat = [place for row in rows for place in row]
    trie = {
        "input_ids": [[beginning[-1] for beginning in places]],
        "position_ids": [[len(beginning) - 1 for beginning in places]],
        "rows": rows,
        "owners": [flat.index(place) for place in places.values()],
    }
    tensors = {name: torch.tensor(value, device=real.device) for name, value in trie.items()}
    return {**tensors, "attention_mask": torch.zeros(1, 1, 1, 1, device=real.device)}


# Bookkeeping ----------------------------------------------------------------------------------------------------------


_KNOWN: WeakKeyDictionary[nn.Module, dict[Any, Any]] = WeakKeyDictionary()


def _once(model: nn.Module, key: Any, find: Callable[[Any], Any]) -> Any:
    known = _KNOWN.setdefault(_inner(model), {})
    first = next(_inner(model).parameters())
    key = (key, first.dtype, first.device)  # a model may be moved between two runs
    if key not in known:
        known[key] = find(_inner(model))
    return known[key]


def _inner(model: nn.Module) -> Any:
    return getattr(model, "module", model)  # out of DistributedDataParallel


def _attention(model: nn.Module) -> str | None:
    return _inner(model).config.get_text_config()._attn_implementation


def _has_values(model: nn.Module) -> bool:
    return not any(parameter.is_meta or isinstance(parameter.data, FakeTensor) for parameter in model.parameters())
