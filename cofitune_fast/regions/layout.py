"""Layout of a decoder: its layers, and the cells that their weights make up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import CofituneError
from ..models.fingerprint import named_parameters, normalize_name
from .cells import ROLES, Block, Cell, Part
from .roles import Found, by_map, by_structure, kind_of, weights

_NEEDED = "a decoder with attention, mixer or feed-forward projections in its layers is needed"


@dataclass(frozen=True, eq=False)
class Layout:
    """Cells of a model, with its layers and parameters. Sizes are those of the unsharded weights.

    in_order: True if each layer runs once, after the one before it.
    blocks: name -> attention, mixer or FFN with its units.
    """

    model_type: str
    num_layers: int
    hidden_size: int
    in_order: bool
    cells: tuple[Cell, ...]
    blocks: Mapping[str, Block]
    _layers: list[nn.Module] = field(repr=False)
    _modules: dict[str, nn.Module] = field(repr=False)
    _parameters: dict[str, nn.Parameter] = field(repr=False)

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles that occur in this model, in the order of ROLES."""
        present = {cell.role for cell in self.cells}
        return tuple(role for role in ROLES if role in present)

    def at(self, layer: int, role: str) -> list[Cell]:
        """Cells of a role in a layer; none if the layer lacks it."""
        return [cell for cell in self.cells if cell.layer == layer and cell.role == role]

    def decoder_layer(self, layer: int) -> nn.Module:
        return self._layers[layer]

    def attention(self, layer: int) -> nn.Module | None:
        """Attention or other token mixer of a layer; None unless there is exactly one."""
        return self._only(layer, "attention", "mixer")

    def ffn(self, layer: int) -> nn.Module | None:
        """Feed-forward part of a layer, with all experts; None if there is none."""
        names = [block.name for block in self.blocks.values() if block.layer == layer and block.kind == "ffn"]
        if len(names) < 2:
            return self._modules[names[0]] if names else None
        # The experts and the shared expert have the whole part as their common parent.
        common = names[0].split(".")
        for name in names[1:]:
            parts = name.split(".")
            common = [a for a, b in zip(common, parts, strict=False) if a == b]
        found = self._modules.get(".".join(common))
        return None if found is self._layers[layer] else found

    def _only(self, layer: int, *kinds: str) -> nn.Module | None:
        names = [block.name for block in self.blocks.values() if block.layer == layer and block.kind in kinds]
        return self._modules[names[0]] if len(names) == 1 else None

    def module(self, cell: Cell) -> nn.Module:
        """Module that holds the cell's weight: a projection, whose output is [..., out_features], or experts."""
        return self._modules[cell.parameter.rpartition(".")[0]]

    def module_named(self, name: str) -> nn.Module:
        return self._modules[name]

    def whole(self, cell: Cell) -> nn.Parameter:
        """The parameter that the cell is, or is a part of."""
        return self._parameters[cell.parameter]

    def parameter(self, cell: Cell) -> torch.Tensor:
        """Weight of a cell: the parameter itself, or a view of the cell's part that shares its storage."""
        return self.tensor(cell.parameter, cell.part)

    def bias(self, cell: Cell) -> tuple[str, torch.Tensor] | None:
        """Name and bias of the cell's projection; None if it has no bias."""
        if cell.bias is None or cell.bias_name is None:
            return None
        return cell.bias_name, self.tensor(cell.bias, cell.bias_part)

    def tensor(self, parameter: str, part: Part | None) -> torch.Tensor:
        whole = self._parameters[parameter]
        return whole if part is None else part.of(whole.detach())

    def part(self, name: str) -> tuple[str, Part] | None:
        """(parameter, part) that a name such as `...qkv_proj.weight[attn.q]` stands for; None for a whole tensor.

        Raises:
            CofituneError: this model has no such part.
        """
        if not name.endswith("]"):
            return None
        for cell in self.cells:
            if cell.part is not None and cell.name == name:
                return cell.parameter, cell.part
            if cell.bias is not None and cell.bias_part is not None and cell.bias_name == name:
                return cell.bias, cell.bias_part
        raise CofituneError(f"This {self.model_type} model has no part named {name}.")


def resolve_layout(model: nn.Module) -> Layout:
    """Find the decoder layers of `model` and the cells of each.

    Roles come from the structure (`roles.by_structure`), and from the map that `load_model(roles=...)` has left at the
    model, which comes first. Matrices that are no projection, such as a convolution or a low-rank helper, belong to no
    cell and stay frozen unless the full model is trained.

    Raises:
        CofituneError: no layers or no projections are found, or a role map does not fit; the message lists the
            matrices of a layer and shows how a map is written.
    """
    inner = getattr(model, "module", model)  # out of DistributedDataParallel
    config = getattr(inner, "config", None)
    if not hasattr(config, "get_text_config"):
        raise CofituneError(f"{type(model).__name__} is not a transformers model (it has no config); {_NEEDED}.")
    if getattr(config, "is_encoder_decoder", False):
        raise CofituneError(f"Model type '{config.model_type}' is an encoder-decoder; {_NEEDED}.")
    text = config.get_text_config()
    model_type = text.model_type
    layers, in_order = decoder_layers(inner, text)
    given: Mapping[str, Any] = getattr(inner, "cofitune_roles", None) or {}

    parameters, modules = dict(named_parameters(model)), dict(_named_modules(model))
    names = _Names({id(tensor): name for name, tensor in parameters.items()},
                   {id(module): name for name, module in modules.items()}, _users(layers))
    found = [_found(layer, model_type, text, given) for layer in layers]
    if given:
        _check_given(given, found, layers, model_type)
    cells: list[Cell] = []
    blocks: dict[str, Block] = {}
    for index, projections in enumerate(found):
        pairs = [(one, _cell(one, index, layers[index], names)) for one in projections]
        cells += [cell for _, cell in pairs]
        for name in dict.fromkeys(cell.block for _, cell in pairs if cell.role != "ffn.router"):
            of_block = [(one, cell) for one, cell in pairs if cell.block == name and cell.role != "ffn.router"]
            blocks[name] = _block(name, index, of_block, modules[name], text)
    if not cells:
        raise CofituneError(_unsupported(model_type, layers[0]))
    order = {role: place for place, role in enumerate(ROLES)}
    cells.sort(key=lambda cell: (cell.layer, order[cell.role]))
    return Layout(
        model_type, len(layers), text.hidden_size, in_order, tuple(cells), blocks, layers, modules, parameters,
    )  # fmt: skip


@dataclass(frozen=True)
class _Names:
    """Names of tensors and modules by id, and the layers that use a tensor."""

    tensors: Mapping[int, str]
    modules: Mapping[int, str]
    users: Mapping[int, set[int]]


def _users(layers: list[nn.Module]) -> dict[int, set[int]]:
    users: dict[int, set[int]] = {}
    for index, layer in enumerate(layers):
        for parameter in layer.parameters():
            users.setdefault(id(parameter), set()).add(index)
    return users


def _cell(one: Found, layer: int, module: nn.Module, names: _Names) -> Cell:
    weight, part = one.weight, one.part
    bias = bias_part = None
    if weight.bias is not None:
        tensor = weight.module._parameters[weight.bias]
        bias = names.tensors[id(tensor)]
        if part is not None:
            bias_part = Part(tensor.dim() - 1, part.start, part.stop, part.period)
    block = names.modules[id(module.get_submodule(weight.parent))]
    others = names.users[id(weight.tensor)] - {layer}
    return Cell(layer, one.role, names.tensors[id(weight.tensor)], part, weight.out, bias, bias_part, block,
                tuple(sorted(others)))


def tensors_named(model: nn.Module, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """The parameters of `model` with these names; for the name of a part, a view of it that shares the storage.

    Raises:
        CofituneError: the model has no parameter or part of a name.
    """
    by_name, found, layout = dict(named_parameters(model)), {}, None
    for name in names:
        if name in by_name:
            found[name] = by_name[name]
            continue
        if name.endswith("]"):
            layout = layout or resolve_layout(model)
            place = layout.part(name)
            if place is not None:
                found[name] = layout.tensor(*place)
                continue
        raise CofituneError(f"The model has no parameter named {name}.")
    return found


def _named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(normalize_name(name), module) for name, module in model.named_modules()]


def _found(layer: nn.Module, model_type: str, text: Any, given: Mapping[str, Any]) -> list[Found]:
    mapped = list(by_map(layer, given)) if given else []
    structure = by_structure(layer, model_type, text, leave_out={one.weight.path for one in mapped})
    return mapped + [one for one in structure if one.role not in given]


def _check_given(
    given: Mapping[str, Any], found: list[list[Found]], layers: list[nn.Module], model_type: str
) -> None:
    """Refuse a map that names what no layer has, or gives a weight's rows to two roles, or the FFN other widths."""
    present = {weight.path for layer in layers for weight in weights(layer)}
    for role, entries in given.items():
        for entry in [entries] if isinstance(entries, str) else entries:
            path = str(entry).removesuffix(".weight").partition("[")[0]
            if path not in present:
                raise CofituneError(
                    f"model.roles.{role} names {path}, which no layer of this {model_type} model has; layer 0 has "
                    f"{', '.join(_paths(layers[0]))}."
                )
    for projections in found:
        taken: dict[str, torch.Tensor] = {}
        named: set[tuple[str, str]] = set()
        widths = {one.weight.inputs for one in projections if one.role == "ffn.down"}
        for one in projections:
            path = one.weight.path
            rows = taken.setdefault(path, torch.zeros(one.weight.outputs, dtype=torch.bool))
            mine = rows if one.part is None else Part(0, one.part.start, one.part.stop, one.part.period).of(rows)
            if mine.any() or (path, one.role) in named:
                raise CofituneError(
                    f"model.roles gives rows of {path} to {one.role}, but they have a role already; rows of a weight "
                    "may have one role, and a role one range of rows in a weight."
                )
            mine.fill_(True)
            named.add((path, one.role))
            if one.role in given and one.role in ("ffn.gate", "ffn.up") and widths and one.outputs not in widths:
                raise CofituneError(
                    f"model.roles.{one.role} names {path} with {one.outputs} outputs, but ffn.down of the layer takes "
                    f"{' or '.join(map(str, sorted(widths)))}."
                )


def decoder_layers(model: nn.Module, text: Any) -> tuple[list[nn.Module], bool]:
    """Layers of the text decoder, in the order in which they run, and True if each runs once.

    They are the outermost list of modules that has as many entries as the config has layers, or else the list with
    most parameters. Lists that are alike, as the two stacks of a hierarchical model, are taken together.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    lists = _outer_lists(decoder) or _outer_lists(model)
    count = config_value(text, "num_hidden_layers")
    if not lists:
        raise CofituneError(
            f"Model type '{text.model_type}': {type(decoder).__name__} holds no list of layers; {_NEEDED}."
        )
    matching = [candidate for candidate in lists if len(candidate) == count]
    if len(matching) == 1:
        return list(matching[0]), True
    if not matching:
        matching = [max(lists, key=lambda layers: sum(p.numel() for p in layers.parameters()))]
        alike = [other for other in lists if type(other[0]) is type(matching[0][0])]
        matching = alike if len(alike) > 1 else matching
    elif len({type(layers[0]) for layers in matching}) > 1:
        matching = [max(matching, key=lambda layers: sum(p.numel() for p in layers.parameters()))]
    return [layer for layers in matching for layer in layers], len(matching) == 1


def _outer_lists(root: nn.Module) -> list[nn.ModuleList]:
    found: list[nn.ModuleList] = []

    def walk(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child):
                if any(True for _ in child.parameters()):
                    found.append(child)
            else:
                walk(child)

    walk(root)
    return found


def _block(
    name: str, layer: int, of_block: list[tuple[Found, Cell]], module: nn.Module, text: Any
) -> Block:
    kind = kind_of(of_block[0][1].role)
    outs = [one.weight for one, cell in of_block if cell.role == "attn.o"]
    if kind == "ffn":
        downs = [one.weight for one, cell in of_block if cell.role == "ffn.down"]
        if not downs:
            return Block(name, layer, kind)
        down = downs[0]
        return Block(name, layer, kind, neurons=down.inputs, experts=down.shape[0] if len(down.shape) == 3 else 0)
    if kind == "attention" and len(outs) == 1 and len(outs[0].shape) == 2:
        heads, key_value = _heads(of_block, module, outs[0].inputs, text)
        return Block(name, layer, kind, heads=heads, key_value_heads=key_value)
    return Block(name, layer, kind)


def _heads(of_block: list[tuple[Found, Cell]], attention: nn.Module, width: int, text: Any) -> tuple[int, int]:
    """(heads, key-value heads) of an attention whose output projection has `width` inputs; (0, 0): they do not fit."""
    outputs = {cell.role: one.outputs for one, cell in of_block}
    for size in _head_sizes(attention, width, text):
        heads = width // size
        if width % size or outputs.get("attn.q", 1) % heads:
            continue
        values = outputs.get("attn.v", 0)
        if values % size == 0 and (not values or heads % (values // size) == 0):
            return heads, values // size
    return 0, 0


def _head_sizes(attention: Any, width: int, text: Any) -> list[int]:
    heads = config_value(text, "num_attention_heads")
    sizes = [getattr(attention, "v_head_dim", None), getattr(attention, "head_dim", None),
             width // heads if isinstance(heads, int) and heads and width % heads == 0 else None]
    return [size for size in sizes if isinstance(size, int) and size > 0]


def config_value(config: Any, name: str) -> Any:
    """An entry of a config; None if it has none, or has one per layer and refuses to give a single one."""
    try:
        return getattr(config, name, None)
    except Exception:  # each family has an error of its own
        return None


def _paths(layer: nn.Module) -> list[str]:
    return [weight.path for weight in weights(layer)]


def _unsupported(model_type: str, first: nn.Module) -> str:
    paths = _paths(first)
    return (
        f"Model type '{model_type}': layer 0 holds {', '.join(paths) or 'no matrix'}, none of which has a role "
        "that is known by its name; say the roles in the config, such as model.roles: {ffn.up: PLACE, ffn.down: PLACE} "
        "with these names as places."
    )

