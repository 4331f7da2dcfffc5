"""Layout of a decoder: the role of each weight, resolved from the model's structure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import CofituneError
from ..models.fingerprint import named_parameters

ROLES = ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate", "ffn.up", "ffn.down")
GROUPS = {"mha": ROLES[:4], "ffn": ROLES[4:]}

_CHILD = {
    "attn.q": "q_proj", "attn.k": "k_proj", "attn.v": "v_proj", "attn.o": "o_proj",
    "ffn.gate": "gate_proj", "ffn.up": "up_proj", "ffn.down": "down_proj",
}  # fmt: skip
_SUPPORTED = (
    "supported are decoders whose layers hold exactly q_proj, k_proj, v_proj, o_proj and gate_proj, up_proj, down_proj "
    "(Llama, Mistral, Qwen2, Qwen3, Gemma 1-3 text and models built like them)"
)


@dataclass(frozen=True)
class Cell:
    """One role of one layer: all of `parameter`, or its part `index` along `dim` if roles share a tensor.

    The projection's bias, if it has one, belongs to the cell too.
    """

    layer: int
    role: str
    parameter: str
    index: slice | None = None
    dim: int = 0


@dataclass(frozen=True, eq=False)
class Layout:
    """Modules and parameters of a model by layer and role. Sizes are those of the unsharded weights."""

    model_type: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    cells: dict[tuple[int, str], Cell]
    _layers: list[nn.Module] = field(repr=False)
    _modules: dict[tuple[int, str], nn.Module] = field(repr=False)
    _parameters: dict[str, nn.Parameter] = field(repr=False)

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles that occur in this model, in the order of ROLES."""
        present = {role for _, role in self.cells}
        return tuple(role for role in ROLES if role in present)

    def decoder_layer(self, layer: int) -> nn.Module:
        return self._layers[layer]

    def attention(self, layer: int) -> nn.Module:
        """Attention module of a layer: the parent of q, k, v and o."""
        return _parent(self._layers[layer], GROUPS["mha"])

    def ffn(self, layer: int) -> nn.Module:
        """Feed-forward module of a layer: the parent of gate, up and down."""
        return _parent(self._layers[layer], GROUPS["ffn"])

    def module(self, layer: int, role: str) -> nn.Module:
        """Projection of a role. Its output is [..., out_features]."""
        return self._modules[layer, role]

    def parameter(self, cell: Cell) -> nn.Parameter:
        """Weight of a cell, [out_features, in_features]."""
        return self._parameters[cell.parameter]

    def bias(self, cell: Cell) -> tuple[str, nn.Parameter] | None:
        """Name and bias [out_features] of the cell's projection; None if it has no bias."""
        name = cell.parameter.removesuffix("weight") + "bias"
        return (name, self._parameters[name]) if name in self._parameters else None


def resolve_layout(model: nn.Module) -> Layout:
    """Find the decoder layers of `model` and the role of each projection, and check all shapes.

    k and v must have num_key_value_heads * head_dim rows, and o must have num_heads * head_dim columns. A layer must
    have no other matrix, as its role would be unknown.

    Raises:
        CofituneError: the layout is not supported; the message lists the matrices of the layer.
    """
    inner = getattr(model, "module", model)  # out of DistributedDataParallel
    config = getattr(inner, "config", None)
    if not hasattr(config, "get_text_config"):
        raise CofituneError(f"{type(model).__name__} is not a transformers model (it has no config); {_SUPPORTED}.")
    model_type = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise CofituneError(f"Model type '{model_type}' is an encoder-decoder; {_SUPPORTED}.")
    text = config.get_text_config()
    layers = _decoder_layers(inner, model_type, text)

    weights = {id(parameter): name for name, parameter in named_parameters(model)}
    modules: dict[tuple[int, str], nn.Module] = {}
    cells: dict[tuple[int, str], Cell] = {}
    parameters: dict[str, nn.Parameter] = {}
    sizes = None
    for index, layer in enumerate(layers):
        found = _projections(layer)
        if found is None:
            raise CofituneError(_unsupported(model_type, index, layer))
        layer_sizes = _verified_sizes(found, _parent(layer, GROUPS["mha"]), text, model_type, index)
        if sizes is not None and layer_sizes != sizes:
            raise CofituneError(
                f"Model type '{model_type}': the sizes of layer {index} are {layer_sizes}, those of layer 0 {sizes} "
                f"(hidden, intermediate, heads, key-value heads, head size); {_SUPPORTED}, all of one shape."
            )
        sizes = layer_sizes
        for role, module in found.items():
            name = weights[id(module.weight)]
            if name in parameters:
                raise CofituneError(
                    f"Model type '{model_type}': {name} serves several layers, so no layer can be trained alone; "
                    f"{_SUPPORTED}, each layer with its own weights."
                )
            modules[index, role] = module
            cells[index, role] = Cell(index, role, name)
            parameters[name] = module.weight
            if getattr(module, "bias", None) is not None:
                parameters[name.removesuffix("weight") + "bias"] = module.bias
    hidden, intermediate, heads, key_value_heads, head_dim = sizes
    return Layout(
        model_type, len(layers), hidden, intermediate, heads, key_value_heads, head_dim,
        cells, layers, modules, parameters,
    )  # fmt: skip


def _decoder_layers(model: nn.Module, model_type: str, text: Any) -> list[nn.Module]:
    """Outermost module list of the decoder that has as many entries as the config has layers."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module)]
    for candidate in lists:
        if len(candidate) == text.num_hidden_layers:
            return list(candidate)
    raise CofituneError(
        f"Model type '{model_type}': its config says {text.num_hidden_layers} layers, but {type(decoder).__name__} "
        f"holds lists of {[len(candidate) for candidate in lists]} modules; {_SUPPORTED}."
    )


def _parent(layer: nn.Module, roles: tuple[str, ...]) -> nn.Module | None:
    """Child of a layer that holds a projection for each of `roles`; None unless there is exactly one."""
    parents = [child for child in layer.children() if all(hasattr(child, _CHILD[role]) for role in roles)]
    return parents[0] if len(parents) == 1 else None


def _projections(layer: nn.Module) -> dict[str, nn.Module] | None:
    """Role -> projection; None if a role is missing, or if a matrix has no known role."""
    parents = {group: _parent(layer, roles) for group, roles in GROUPS.items()}
    if None in parents.values():
        return None
    found = {role: getattr(parents[group], _CHILD[role]) for group, roles in GROUPS.items() for role in roles}
    if not all(hasattr(module, "in_features") and hasattr(module, "weight") for module in found.values()):
        return None
    # Parameters inside a projection, such as an adapter's, belong to it.
    known = {id(parameter) for module in found.values() for parameter in module.parameters()}
    unknown = any(parameter.dim() > 1 and id(parameter) not in known for parameter in layer.parameters())
    return None if unknown else found


def _verified_sizes(found: dict[str, nn.Module], attention: nn.Module, text: Any, model_type: str, index: int) -> tuple:
    """Check a layer's seven shapes; returns (hidden, intermediate, heads, key-value heads, head size)."""
    hidden, heads = text.hidden_size, text.num_attention_heads
    key_value_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(attention, "head_dim", None) or getattr(text, "head_dim", None) or hidden // heads
    intermediate = _shape(found["ffn.down"])[1]
    queries, keys = heads * head_dim, key_value_heads * head_dim
    expected = {
        "attn.q": (queries, hidden), "attn.k": (keys, hidden), "attn.v": (keys, hidden), "attn.o": (hidden, queries),
        "ffn.gate": (intermediate, hidden), "ffn.up": (intermediate, hidden), "ffn.down": (hidden, intermediate),
    }  # fmt: skip
    for role, shape in expected.items():
        if _shape(found[role]) != shape:
            raise CofituneError(
                f"Model type '{model_type}': {_CHILD[role]} of layer {index} has the shape {_shape(found[role])} where "
                f"{shape} was expected ({heads} heads, {key_value_heads} key-value heads of {head_dim}); {_SUPPORTED}."
            )
    return hidden, intermediate, heads, key_value_heads, head_dim


def _shape(module: nn.Module) -> tuple[int, int]:
    """Shape (out, in) of a projection. A quantised weight is packed, so its module is asked."""
    if module.weight.is_floating_point():
        return tuple(module.weight.shape)
    return module.out_features, module.in_features


def _unsupported(model_type: str, index: int, layer: nn.Module) -> str:
    matrices = [name.removesuffix(".weight") for name, weight in layer.named_parameters() if weight.dim() > 1]
    return f"Model type '{model_type}': layer {index} holds {', '.join(matrices) or 'no matrix'}; {_SUPPORTED}."
