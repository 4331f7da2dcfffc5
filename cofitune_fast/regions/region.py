"""Regions: the roles and layers to train, written as text such as `ffn.up+ffn.down@25%-50%`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from torch import Tensor, nn

from ..errors import CofituneError
from ..models.fingerprint import element_count, named_parameters
from .roles import GROUPS, ROLES, Cell, Layout, resolve_layout

DEFAULT_REGION = "ffn@40%-75%"
"""Region that is trained by default; docs/comparison.md has the measurements behind it."""

_GROUPS = {**GROUPS, "all": ROLES}
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

        ROLES: roles (attn.q attn.k attn.v attn.o ffn.gate ffn.up ffn.down) and groups (mha, ffn, all) joined by `+`.
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
        """(text of the roles, layers) pairs. Roles with equal layers share a pair, and whole groups have their name."""
        together: dict[LayerSet, list[str]] = {}
        for role, layers in self.layers:
            together.setdefault(layers, []).append(role)
        return [(_roles_text(roles), layers) for layers, roles in together.items()]

    def cells(self, layout: Layout) -> list[Cell]:
        """Cells of the region in a model, sorted by layer and then role. For `full`, all cells that have a role.

        Raises:
            CofituneError: the model lacks a role or a layer, or a percent range selects none of its layers.
        """
        chosen = [(role, LayerSet(everything=True)) for role in layout.roles] if self.is_full else self.layers
        pairs = set()
        for role, layers in chosen:
            if role not in layout.roles:
                raise CofituneError(
                    f"Region '{self}' trains {role}, which this {layout.model_type} model lacks; "
                    f"it has {', '.join(layout.roles)}."
                )
            pairs.update((layer, ROLES.index(role)) for layer in layers.indices(layout.num_layers, str(self)))
        return [layout.cells[layer, ROLES[index]] for layer, index in sorted(pairs)]

    def parameters(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """(name, parameter) pairs that the region trains: weights [out, in] and their biases [out], tied ones once.

        Names are those of `model.named_parameters()` without wrapper prefixes.
        """
        if self.is_full:
            return list(named_parameters(model))
        layout = resolve_layout(model)
        pairs = []
        for cell in self.cells(layout):
            pairs.append((cell.parameter, layout.parameter(cell)))
            if bias := layout.bias(cell):
                pairs.append(bias)
        return pairs

    def modules(self, model: nn.Module) -> list[str]:
        """Full names of the projections that the region trains. `model` may lie on the meta device."""
        return [cell.parameter.removesuffix(".weight") for cell in self.cells(resolve_layout(model))]

    def apply(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """Set requires_grad to True for the region's parameters, and to False for all others.

        Returns the trained (name, parameter) pairs.

        Raises:
            CofituneError: as in `cells`; or a weight of the region is quantised and cannot be trained.
        """
        pairs = self.parameters(model)
        for name, parameter in pairs:
            if not parameter.is_floating_point():
                raise CofituneError(
                    f"Region '{self}' trains {name}, which is quantised ({parameter.dtype}); "
                    "load the model with this region in full precision."
                )
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for _, parameter in pairs:
            parameter.requires_grad_(True)
        return pairs

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

    def attached(self, model: nn.Module) -> AbstractContextManager[None]:
        """A block that does nothing, for a region's parameters are the model's own."""
        return nullcontext()

    def endpoint(self, model: nn.Module) -> Callable[[str, Tensor], Tensor]:
        """f(name, base value) is the value that the model holds now; the tensors are copied."""
        trained = {name: parameter.detach().clone() for name, parameter in self.parameters(model)}
        return lambda name, base: trained[name]

    def count(self, model: nn.Module) -> int:
        """Number of trained parameters in `model`."""
        return sum(element_count(parameter) for _, parameter in self.parameters(model))

    def describe(self, model: nn.Module) -> str:
        """One line of text, e.g. "ffn.up+ffn.down, layers 7-14 of 30, 14.2 M of 134.5 M parameters (10.5 %)"."""
        trained, total = self.count(model), sum(element_count(parameter) for parameter in model.parameters())
        amount = f"{_amount(trained)} of {_amount(total)} parameters ({trained / total:.1%})".replace("%", " %")
        if self.is_full:
            return f"the full model, {amount}"
        layout = resolve_layout(model)
        terms = Region.from_cells(self.cells(layout))._terms()
        where = "; ".join(f"{roles}, {'layer' if str(at).isdigit() else 'layers'} {at}" for roles, at in terms)
        return f"{where} of {layout.num_layers}, {amount}"


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


def _roles_text(roles: list[str]) -> str:
    if len(roles) == len(ROLES):
        return "all"
    names: list[str] = []
    for group, members in GROUPS.items():
        present = [role for role in members if role in roles]
        names += [group] if len(present) == len(members) else present
    return "+".join(names)


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
