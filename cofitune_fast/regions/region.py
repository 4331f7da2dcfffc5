"""Regions: the roles and layers to train, written as text such as `ffn.up+ffn.down@25%-50%`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from torch import Tensor, nn

from ..errors import CofituneError
from ..models.fingerprint import element_count, named_parameters
from ..models.sharded import is_sharded
from . import parts
from .cells import GROUPS, ROLES, Cell, Part, part_name
from .layout import Layout, resolve_layout

DEFAULT_REGION = "ffn@40%-75%"
"""Region that is trained by default; docs/comparison.md has the measurements behind it."""

_GROUPS = {**GROUPS, "all": GROUPS["mha"] + GROUPS["ffn"]}
_FORM = "write ROLES@LAYERS, for example 'ffn.up+ffn.down@25%-50%', 'mha@all' or 'ffn@3,5,8-15'"
_PERCENT = r"(\d{1,9}(?:\.\d{1,12})?)\s*%"


@dataclass(frozen=True)
class LayerSet:
    """A set of layers in canonical form: all, or merged ranges.

    ranges: inclusive ranges of layer numbers. percents: half-open ranges of percents.
    """

    everything: bool = False
    ranges: tuple[tuple[int, int], ...] = ()
    percents: tuple[tuple[Decimal, Decimal], ...] = ()

    @classmethod
    def parse(cls, text: str, where: str) -> LayerSet:
        """Parse `all`, `8`, `8-15`, `25%-50%`, or a comma list of these. where: the region to name in errors."""
        result = cls()
        for part in (part.strip() for part in text.split(",")):
            result |= cls._parse_part(part, where)
        return result

    @classmethod
    def _parse_part(cls, part: str, where: str) -> LayerSet:
        if part.lower() == "all":
            return cls(everything=True)
        if match := re.fullmatch(r"(\d{1,9})(?:\s*-\s*(\d{1,9}))?", part):
            low, high = int(match[1]), int(match[2] or match[1])
            if low > high:
                raise CofituneError(f"The layers '{part}' of region '{where}' run backwards; write {high}-{low}.")
            return cls(ranges=((low, high),))
        if match := re.fullmatch(rf"{_PERCENT}\s*-\s*{_PERCENT}", part):
            low, high = Decimal(match[1]), Decimal(match[2])
            if high > 100 or low > 100:
                raise CofituneError(f"The layers '{part}' of region '{where}' lie outside 0%-100%.")
            if low > high:
                raise CofituneError(
                    f"The layers '{part}' of region '{where}' run backwards; write {_plain(high)}%-{_plain(low)}%."
                )
            if low == high:
                raise CofituneError(
                    f"The layers '{part}' of region '{where}' select no layer: the end of a percent range is excluded."
                )
            return cls(everything=True) if (low, high) == (0, 100) else cls(percents=((low, high),))
        raise CofituneError(
            f"The layers '{part}' of region '{where}' are not understood; write all, 8, 8-15, 25%-50%, "
            "or a comma list of these."
        )

    def __or__(self, other: LayerSet) -> LayerSet:
        if self.everything or other.everything:
            return LayerSet(everything=True)
        percents = _merged(self.percents + other.percents, gap=0)
        if percents == ((0, 100),):
            return LayerSet(everything=True)
        return LayerSet(ranges=_merged(self.ranges + other.ranges, gap=1), percents=percents)

    def __str__(self) -> str:
        if self.everything:
            return "all"
        numbers = [str(low) if low == high else f"{low}-{high}" for low, high in self.ranges]
        return ",".join(numbers + [f"{_plain(low)}%-{_plain(high)}%" for low, high in self.percents])

    def indices(self, num_layers: int, where: str) -> set[int]:
        """Numbers of the selected layers in a model with N = num_layers layers.

        A percent range lo-hi selects floor(N lo) .. floor(N hi) - 1, as in the paper (arXiv 2404.10306), in exact
        arithmetic.

        Raises:
            CofituneError: a layer is beyond the model, or a percent range selects no layer of it.
        """
        if self.everything:
            return set(range(num_layers))
        selected: set[int] = set()
        for low, high in self.ranges:
            if high >= num_layers:
                raise CofituneError(
                    f"Region '{where}' names layer {high}, but this model has the layers 0-{num_layers - 1}."
                )
            selected.update(range(low, high + 1))
        for low, high in self.percents:
            start, stop = (num_layers * Fraction(percent) // 100 for percent in (low, high))
            if start == stop:
                raise CofituneError(
                    f"{_plain(low)}%-{_plain(high)}% of region '{where}' selects no layer in this model of "
                    f"{num_layers} layers; widen the range."
                )
            selected.update(range(start, stop))
        return selected


@dataclass(frozen=True)
class _Trained:
    """A tensor to train, or a role's part of it."""

    name: str
    parameter: str
    role: str = ""
    part: Part | None = None


@dataclass(frozen=True)
class Region:
    """A set of (layer, role) cells, independent of a model. Equal regions have equal text; `parse` has the grammar.

    layers: (role, the layers where it is trained), in the order of ROLES.
    is_full: True for all parameters of the model, including embeddings and norms; its text is `full`.
    """

    layers: tuple[tuple[str, LayerSet], ...] = ()
    is_full: bool = False

    @classmethod
    def full(cls) -> Region:
        """Region of all parameters of the model, for full fine-tuning."""
        return cls(is_full=True)

    @classmethod
    def parse(cls, text: str | Region) -> Region:
        """Parse `ROLES@LAYERS(;ROLES@LAYERS)*` or `full`. A Region is returned as it is.

        ROLES: roles (attn.q attn.k attn.v attn.o ffn.gate ffn.up ffn.down and the others of `cells.ROLES`) and groups
        (mha, ffn, all) joined by `+`. A group stands for those of its roles that the model has.
        LAYERS: `all`, `8`, `8-15` (inclusive), `25%-50%` (half-open), or a comma list. Case and blanks do not matter.

        Raises:
            CofituneError: an unknown role, a malformed or impossible range, or an empty text.
        """
        if isinstance(text, Region):
            return text
        where = " ".join(text.split())
        if not where:
            raise CofituneError(f"The region is empty; {_FORM}, or 'full'.")
        if where.lower() == "full":
            return cls.full()
        by_role: dict[str, LayerSet] = {}
        for term in where.split(";"):
            roles, at, layers = term.partition("@")
            if not (roles.strip() and at and layers.strip()):
                raise CofituneError(f"The part '{term.strip()}' of region '{where}' is incomplete; {_FORM}.")
            layer_set = LayerSet.parse(layers, where)
            for role in _parse_roles(roles, where):
                by_role[role] = by_role.get(role, LayerSet()) | layer_set
        return cls._of(by_role)

    @classmethod
    def from_cells(cls, cells: Iterable[Cell | tuple[int, str]]) -> Region:
        """Make a region of cells or (layer, role) pairs, by layer number."""
        by_role: dict[str, LayerSet] = {}
        for cell in cells:
            layer, role = (cell.layer, cell.role) if isinstance(cell, Cell) else cell
            by_role[role] = by_role.get(role, LayerSet()) | LayerSet(ranges=((layer, layer),))
        if not by_role:
            raise CofituneError(f"The region is empty; {_FORM}, or 'full'.")
        return cls._of(by_role)

    @classmethod
    def _of(cls, by_role: dict[str, LayerSet]) -> Region:
        return cls(tuple((role, by_role[role]) for role in ROLES if role in by_role))

    def __str__(self) -> str:
        """Canonical text. Region.parse makes an equal region of it."""
        return "full" if self.is_full else ";".join(f"{roles}@{layers}" for roles, layers in self._terms())

    def _terms(self) -> list[tuple[str, LayerSet]]:
        """(text of the roles, layers) pairs. A group whose roles all have some layers in common stands for these, and
        roles and groups with equal layers share a pair."""
        left, named = dict(self.layers), []
        for group, members in GROUPS.items():
            sets = [left[role] for role in members if role in left]
            shared = next((one for one in sets if all(one | other == other for other in sets)), None)
            if len(sets) == len(members) and shared is not None:
                named.append((ROLES.index(members[0]), group, shared))
                left = {role: layers for role, layers in left.items() if role not in members or layers != shared}
        named += [(ROLES.index(role), role, layers) for role, layers in left.items()]
        together: dict[LayerSet, list[str]] = {}
        for _, name, layers in sorted(named, key=lambda entry: (entry[0], entry[1] not in GROUPS)):
            together.setdefault(layers, []).append(name)
        return [("+".join(["all", *names[2:]] if names[:2] == list(GROUPS) else names), layers)
                for layers, names in together.items()]

    def _together(self) -> list[tuple[list[str], LayerSet]]:
        """(roles, layers) pairs, one for each set of layers."""
        together: dict[LayerSet, list[str]] = {}
        for role, layers in self.layers:
            together.setdefault(layers, []).append(role)
        return [(roles, layers) for layers, roles in together.items()]

    def cells(self, layout: Layout) -> list[Cell]:
        """Cells of the region in a model, sorted by layer and then role. For `full`, all cells that have a role.

        A layer that lacks a role is passed over, and so is a role of a group that the model lacks.

        Raises:
            CofituneError: a role that is named by itself is nowhere in the model, a layer is beyond it, a percent range
                selects none of its layers, nothing is selected at all, or a weight serves several layers.
        """
        if self.is_full:
            return list(layout.cells)
        chosen = {(layer, role) for role, layers in self.layers
                  for layer in layers.indices(layout.num_layers, str(self))}
        for layer in {layer for layer, _ in chosen}:
            roles = {role for role in ROLES if (layer, role) in chosen}
            by_group = {role for members in GROUPS.values() if roles >= set(members) for role in members}
            if unknown := roles - by_group - set(layout.roles):
                raise CofituneError(
                    f"Region '{self}' trains {min(unknown, key=ROLES.index)}, which this {layout.model_type} model "
                    f"lacks; it has {', '.join(layout.roles)}."
                )
        cells = [cell for cell in layout.cells if (cell.layer, cell.role) in chosen]
        if not cells:
            held = {cell.role for cell in layout.cells if cell.layer in {layer for layer, _ in chosen}}
            raise CofituneError(
                f"Region '{self}' selects nothing in this {layout.model_type} model: its layers hold "
                f"{', '.join(role for role in ROLES if role in held) or 'no projection'}."
            )
        for cell in cells:
            if cell.shared:
                layers = ", ".join(map(str, sorted({cell.layer, *cell.shared})))
                raise CofituneError(
                    f"Region '{self}' trains {cell.parameter}, which serves the layers {layers} together, so no layer "
                    "can be trained alone; leave its role out or train 'full'."
                )
        return cells

    def _trained(self, layout: Layout) -> list[_Trained]:
        """The tensors to train: weights and biases, each once. A tensor whose parts are all in the region is whole."""
        by_tensor: dict[str, list[tuple[str, Part | None]]] = {}
        for cell in self.cells(layout):
            by_tensor.setdefault(cell.parameter, []).append((cell.role, cell.part))
            if cell.bias is not None:
                by_tensor.setdefault(cell.bias, []).append((cell.role, cell.bias_part))
        trained = []
        for parameter, owned in by_tensor.items():
            shape = layout.tensor(parameter, None).shape
            covered = [part.size * (shape[part.dim] // part.period) / shape[part.dim] for _, part in owned if part]
            if not covered or sum(covered) == 1:  # parts do not overlap
                trained.append(_Trained(parameter, parameter))
            else:
                trained += [_Trained(part_name(parameter, role), parameter, role, part) for role, part in owned]
        return trained

    def trained_parts(self, layout: Layout) -> list[str]:
        """Names of the parts of tensors that the region trains without the rest of the tensor."""
        return [] if self.is_full else [one.name for one in self._trained(layout) if one.part is not None]

    def parameters(self, model: nn.Module) -> list[tuple[str, Tensor]]:
        """(name, tensor) pairs that the region trains: weights and biases, tied ones once.

        Names are those of `model.named_parameters()` without wrapper prefixes. A part of a tensor is called
        `TENSOR[ROLE]`; it comes as the parameter that `apply` has put into the model, and before that as a view.
        """
        if self.is_full:
            return list(named_parameters(model))
        layout = resolve_layout(model)
        return [(one.name, _tensor_of(layout, one)) for one in self._trained(layout)]

    def modules(self, model: nn.Module) -> list[str]:
        """Full names of the modules that hold the region's weights. `model` may lie on the meta device."""
        layout = resolve_layout(model)
        return list(dict.fromkeys(_owner(cell.parameter)[0] for cell in self.cells(layout)))

    def apply(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """Set requires_grad to True for the region's parameters, and to False for all others.

        Of a fused tensor that is trained in part, a new parameter shares the part's storage (`parts.attach`).
        Returns the trained (name, parameter) pairs.

        Raises:
            CofituneError: as in `cells`; the model holds adapters of PEFT, which a delta would not hold; a weight of
                the region is quantised and cannot be trained; or a part of a tensor would be trained whose weights are
                sharded.
        """
        _refuse_adapters(model)
        parts.detach(model)
        pairs = self.parameters(model)
        for name, parameter in pairs:
            if not parameter.is_floating_point():
                raise CofituneError(
                    f"Region '{self}' trains {name}, which is quantised ({parameter.dtype}); "
                    "load the model with this region in full precision."
                )
        if any(name.endswith("]") for name, _ in pairs):
            pairs = self._attach_parts(model)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for _, parameter in pairs:
            parameter.requires_grad_(True)
        return pairs  # type: ignore[return-value]

    def _attach_parts(self, model: nn.Module) -> list[tuple[str, Tensor]]:
        layout = resolve_layout(model)
        trained = self._trained(layout)
        if is_sharded(model):
            name = next(one.name for one in trained if one.part is not None)
            raise CofituneError(
                f"Region '{self}' trains {name}, a part of a tensor, which is not possible while several processes "
                "share the weights; name all roles of that tensor, or start one process."
            )
        by_tensor: dict[str, list[tuple[Part, str]]] = {}
        for one in trained:
            if one.part is not None:
                by_tensor.setdefault(one.parameter, []).append((one.part, one.role))
        for parameter, owned in by_tensor.items():
            module, key = _owner(parameter)
            parts.attach(layout.module_named(module), key, owned)
        return [(one.name, _tensor_of(layout, one)) for one in trained]

    @property
    def in_place(self) -> bool:
        """True, for a region's weights are the model's own."""
        return True

    @property
    def changes(self) -> Region:
        """The region itself, as a `Trainable`."""
        return self

    @property
    def cached_below(self) -> Region | None:
        """The region itself, or None for `full`, which changes the embeddings too."""
        return None if self.is_full else self

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Context after which the parameters for parts of tensors, made by `apply`, are gone from `model`."""
        try:
            yield
        finally:
            parts.detach(model)

    def endpoint(self, model: nn.Module) -> Callable[[str, Tensor], Tensor]:
        """f(name, base value) is the value that the model holds now; the tensors are copied."""
        trained = {name: parameter.detach().clone() for name, parameter in self.parameters(model)}
        return lambda name, base: trained[name]

    def count(self, model: nn.Module) -> int:
        """Number of trained parameters in `model`."""
        return sum(element_count(parameter) for _, parameter in self.parameters(model))

    def describe(self, model: nn.Module) -> str:
        """One line of text, e.g. "ffn.up+ffn.down, layers 7-14 of 30, 14.2 M of 134.5 M parameters (10.5 %)"."""
        trained, total = self.count(model), sum(element_count(parameter) for _, parameter in named_parameters(model))
        amount = f"{_amount(trained)} of {_amount(total)} parameters ({trained / total:.1%})".replace("%", " %")
        if self.is_full:
            return f"the full model, {amount}"
        layout = resolve_layout(model)
        terms = Region.from_cells(self.cells(layout))._together()
        where = "; ".join(
            f"{_roles_text(roles, layout.roles)}, {'layer' if str(at).isdigit() else 'layers'} {at}"
            for roles, at in terms
        )
        return f"{where} of {layout.num_layers}, {amount}"


def apply(model: nn.Module, region: Region | str = DEFAULT_REGION) -> list[tuple[str, nn.Parameter]]:
    """Freeze a model but for a region; returns the (name, parameter) pairs to train, for an optimizer of any kind.

    region: a `Region`, or its text such as "ffn@40%-75%" or "full".

    Raises:
        CofituneError: as in `Region.parse` and `Region.apply`.
    """
    return (Region.parse(region) if isinstance(region, str) else region).apply(model)


def _parse_roles(text: str, where: str) -> list[str]:
    roles: list[str] = []
    for name in (part.strip() for part in text.split("+")):
        known = name.lower()
        if known not in ROLES and known not in _GROUPS:
            raise CofituneError(
                f"Unknown role '{name}' in region '{where}'{_hint(known)}; known are the roles {', '.join(ROLES)} "
                f"and the groups {', '.join(_GROUPS)}."
            )
        roles += _GROUPS.get(known, (known,))
    return roles


def _hint(name: str) -> str:
    bare = name.rsplit(".", 1)[-1].removesuffix("_proj")
    same_end = [role for role in ROLES if role.endswith("." + bare)]
    near = same_end or difflib.get_close_matches(name, [*ROLES, *_GROUPS], n=1, cutoff=0.5)
    return f", did you mean '{near[0]}'?" if near else ""


def _roles_text(roles: list[str], present: Iterable[str] = ROLES) -> str:
    """Names of roles, with a group's name for all of its roles that are `present`."""
    there, names = set(present), []
    for group, members in GROUPS.items():
        known = [role for role in members if role in there]
        mine = [role for role in members if role in roles]
        names += [group] if mine and mine == known else mine
    if names == list(GROUPS):
        names = ["all"]
    return "+".join(names + [role for role in roles if role not in _GROUPS["all"]])


def _owner(parameter: str) -> tuple[str, str]:
    """(name of the module, attribute) of a parameter."""
    module, _, key = parameter.rpartition(".")
    return module, key


def _tensor_of(layout: Layout, one: _Trained) -> Tensor:
    if one.part is not None:
        module, key = _owner(one.parameter)
        leaf = parts.attached(layout.module_named(module), key, one.role)
        if leaf is not None:
            return leaf
    return layout.tensor(one.parameter, one.part)


def _merged(ranges: tuple[tuple, ...], gap: int) -> tuple[tuple, ...]:
    """Sort ranges, and merge those that overlap or start at most `gap` after another's end."""
    merged: list[tuple] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + gap:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def _plain(percent: Decimal) -> str:
    return format(percent.normalize(), "f")


def _amount(count: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def _refuse_adapters(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise CofituneError(f"A region is applied to a model, and this is {type(model).__name__}; "
                            "cofitune_fast.load_model loads one.")
    kind = next((type(one).__name__ for one in model.modules() if type(one).__module__.split(".")[0] == "peft"), None)
    if kind is not None:
        raise CofituneError(f"The model holds adapters of PEFT ({kind}), which a delta of a region would not hold; "
                            "merge them first by PEFT's merge_and_unload, or load the model without them.")
