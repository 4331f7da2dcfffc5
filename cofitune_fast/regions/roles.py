"""Which weight of a decoder layer has which role, read from the layer's structure.

The rules go by the names of projections and of their siblings, not by families: a new family with usual names needs
nothing here. Only how a fused projection interleaves its outputs cannot be seen; `_FUSED` says it by model type.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import CofituneError
from ..models.fingerprint import PARTS
from .cells import ROLES, Part

# The names of a block's children tell what the block is.
_QUERIES = {"q_proj", "q_b_proj", "q_gate_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv", "Wq", "q", "kv_proj"}
_MIXERS = re.compile(r"in_proj.*|conv.*|linear_x|receptance|ssm.*")

_ATTENTION = {
    "q_proj": "attn.q", "q_b_proj": "attn.q", "q_gate_proj": "attn.q", "q": "attn.q", "Wq": "attn.q",
    "k_proj": "attn.k", "k": "attn.k", "Wk": "attn.k",
    "v_proj": "attn.v", "v": "attn.v", "Wv": "attn.v", "v_proj_current": "attn.v", "v_proj_delayed": "attn.v",
    "q_a_proj": "attn.q_a", "kv_a_proj_with_mqa": "attn.kv_a", "kv_a_proj": "attn.kv_a",
    "o_proj": "attn.o", "out_proj": "attn.o", "dense": "attn.o", "c_proj": "attn.o", "Wo": "attn.o",
    "o_b_proj": "attn.o", "gate_proj": "attn.gate", "g_proj": "attn.gate", "output_gate": "attn.gate",
    "ogate_preact": "attn.gate",
}  # fmt: skip
_MIXER = {
    "in_proj": "mix.in", "in_proj_qkv": "mix.in", "in_proj_qkvz": "mix.in", "in_proj_z": "mix.in",
    "in_proj_a": "mix.in", "in_proj_b": "mix.in", "in_proj_ba": "mix.in", "linear_x": "mix.in", "linear_y": "mix.in",
    "key": "mix.in", "value": "mix.in", "receptance": "mix.in",
    "out_proj": "mix.out", "linear_out": "mix.out", "output": "mix.out",
}  # fmt: skip
_FFN = {
    "gate_proj": "ffn.gate", "w1": "ffn.gate", "up_proj": "ffn.up", "w3": "ffn.up", "fc1": "ffn.up", "c_fc": "ffn.up",
    "fc_in": "ffn.up", "dense_h_to_4h": "ffn.up", "gate_up_proj": "ffn.up", "Wi": "ffn.up", "input_linear": "ffn.up",
    "proj_up": "ffn.up", "proj_up_gate": "ffn.gate", "down_proj": "ffn.down", "w2": "ffn.down", "fc2": "ffn.down",
    "c_proj": "ffn.down", "fc_out": "ffn.down", "dense_4h_to_h": "ffn.down", "Wo": "ffn.down",
    "output_linear": "ffn.down", "proj_down": "ffn.down",
}  # fmt: skip
_CHANNEL_MIX = {"key": "ffn.up", "receptance": "ffn.gate", "value": "ffn.down"}  # RWKV's feed-forward part
_FUSED_QKV = ("qkv_proj", "query_key_value", "c_attn", "Wqkv")
_WITHOUT_ROLE = re.compile(r"(.*\.)?(indexer|compressor|altup|laurel|adapter_list|gate_up_proj_adapter_list)(\..*|)")


@dataclass(frozen=True)
class Weight:
    """A weight of a layer. path: its place in the layer, without `.weight`, such as `self_attn.q_proj`.

    parent: path of the module that holds the projection; leaf: the projection's own name.
    """

    path: str
    module: nn.Module
    key: str
    tensor: torch.Tensor

    @property
    def parent(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight. A quantised one is packed, so its module is asked."""
        if self.tensor.is_floating_point():
            return tuple(self.tensor.shape)
        module: Any = self.module
        return module.out_features, module.in_features

    @property
    def out(self) -> int:
        """Dimension of the outputs."""
        if len(self.shape) == 3:
            return 2 if getattr(self.module, "is_transposed", _is_transposed(self)) else 1
        return 1 if type(self.module).__name__ == "Conv1D" else 0

    @property
    def outputs(self) -> int:
        return self.shape[self.out]

    @property
    def inputs(self) -> int:
        """Number of inputs; of each expert, if there are experts."""
        return self.shape[len(self.shape) - 1 if self.out != len(self.shape) - 1 else len(self.shape) - 2]

    @property
    def bias(self) -> str | None:
        """Attribute of the module that holds the bias, if it has one."""
        key = "bias" if self.key == "weight" else f"{self.key}_bias"
        return key if isinstance(self.module._parameters.get(key), torch.Tensor) else None


@dataclass(frozen=True)
class Found:
    """A weight, or a part of it, with its role."""

    weight: Weight
    role: str
    part: Part | None = None

    @property
    def outputs(self) -> int:
        """Number of outputs that belong to the role."""
        if self.part is None:
            return self.weight.outputs
        return self.part.size * (self.weight.outputs // self.part.period)


def weights(layer: nn.Module) -> list[Weight]:
    """Weights of two or three dimensions in a layer, in the order of its modules. Adapters' weights are left out."""
    found = []
    for path, module in layer.named_modules():
        for key, tensor in module._parameters.items():
            if tensor is None or "lora_" in path or path.endswith(PARTS):
                continue
            if tensor.is_floating_point() and tensor.dim() not in (2, 3):
                continue
            full = path if key == "weight" else f"{path}.{key}".lstrip(".")
            if key.endswith("bias") or isinstance(module, (nn.Embedding, nn.Conv1d)):
                continue
            found.append(Weight(full.removesuffix(".base_layer"), module, key, tensor))
    return found


def by_structure(
    layer: nn.Module, model_type: str, config: Any, leave_out: Collection[str] = ()
) -> list[Found]:
    """Find the role of every projection in a layer. Weights that are no projections are left out.

    leave_out: paths of weights whose role is known already.

    Raises:
        CofituneError: a fused projection of a family whose interleaving is not known.
    """
    everything = weights(layer)
    siblings: dict[str, set[str]] = {}
    for name, _ in layer.named_modules():
        parent, _, leaf = name.rpartition(".")
        siblings.setdefault(parent, set()).add(leaf)
    for weight in everything:
        siblings.setdefault(weight.parent, set()).add(weight.leaf)
    found: list[Found] = []
    for weight in everything:
        role = None if weight.path in leave_out else _role(weight, siblings)
        if role is not None:
            found += _split(weight, role, layer, everything, model_type, config)
    return found


def kind_of(role: str) -> str:
    """Kind of the block that a role is in."""
    return {"attn": "attention", "mix": "mixer"}.get(role.partition(".")[0], "ffn")


def _role(weight: Weight, siblings: Mapping[str, set[str]]) -> str | None:
    if _WITHOUT_ROLE.fullmatch(weight.path):
        return None
    around = siblings[weight.parent]
    if _routes(weight.path, siblings):
        return "ffn.router"
    if weight.parent.startswith("self_attention.experts"):  # JetMoE routes the attention's projections, too
        return {"input_linear": "attn.q", "output_linear": "attn.o"}.get(weight.leaf)
    if around & _QUERIES:
        role = _ATTENTION.get(weight.leaf)
        return "attn.q" if weight.leaf in (*_FUSED_QKV, "kv_b_proj", "kv_proj") else role
    if "receptance" in around and "output" not in around:
        return _CHANNEL_MIX.get(weight.leaf)
    if any(_MIXERS.fullmatch(name) for name in around):
        return _MIXER.get(weight.leaf)
    if around <= {"0", "1", "2"} and weight.parent.rpartition(".")[2] == "ffn":  # a plain sequence, as in CTRL
        return {"0": "ffn.up", "2": "ffn.down"}.get(weight.leaf)
    role = _FFN.get(weight.leaf)
    if weight.leaf == "w1" and "w3" not in around:
        return "ffn.up"
    return role


def _routes(path: str, siblings: Mapping[str, set[str]]) -> bool:
    """True if a weight belongs to what chooses experts, which may be a small network."""
    parts = path.split(".")
    return "router" in parts or parts[-1] == "shared_expert_gate" or any(
        part == "gate" and "experts" in siblings[".".join(parts[:place])] for place, part in enumerate(parts))


def _split(
    weight: Weight, role: str, layer: nn.Module, everything: list[Weight], model_type: str, config: Any
) -> list[Found]:
    """The roles of a projection, several if it is fused."""
    beside = {other.leaf: other for other in everything if other.parent == weight.parent}
    rows = weight.outputs
    if weight.leaf in _FUSED_QKV:
        module = layer.get_submodule(weight.parent)
        parts = _fused_qkv(weight, module, model_type, config)
        return [Found(weight, name, Part(weight.out, *part)) for name, part in parts]
    if weight.leaf == "kv_b_proj":
        module = layer.get_submodule(weight.parent)
        keys, values = module.qk_nope_head_dim, module.v_head_dim
        return [Found(weight, "attn.k", Part(weight.out, 0, keys, keys + values)),
                Found(weight, "attn.v", Part(weight.out, keys, keys + values, keys + values))]
    if weight.leaf == "q_gate_proj":
        module = layer.get_submodule(weight.parent)
        queries, gates = module.qk_head_dim, module.v_head_dim
        return [Found(weight, "attn.q", Part(weight.out, 0, queries, queries + gates)),
                Found(weight, "attn.gate", Part(weight.out, queries, queries + gates, queries + gates))]
    if weight.leaf == "kv_proj":
        if model_type != "jetmoe":  # one projection that is both, as in DeepSeek V4
            return [Found(weight, "attn.kv_a")]
        return [Found(weight, "attn.k", Part(0, 0, rows // 2, rows)),
                Found(weight, "attn.v", Part(0, rows // 2, rows, rows))]
    if role == "attn.q" and weight.leaf == "q_proj" and "o_proj" in beside:
        size = getattr(layer.get_submodule(weight.parent), "head_dim", None)
        if size and rows == 2 * beside["o_proj"].inputs and rows % (2 * size) == 0:  # queries and a gate, head by head
            return [Found(weight, "attn.q", Part(weight.out, 0, size, 2 * size)),
                    Found(weight, "attn.gate", Part(weight.out, size, 2 * size, 2 * size))]
    if role == "ffn.up":
        down = next((other for name, other in beside.items() if _FFN.get(name) == "ffn.down"), None)
        if down is not None and rows == 2 * down.inputs:
            # In gpt-oss gate and up take turns; transformers 5.5 has no flag that says so.
            if not getattr(weight.module, "is_concatenated", type(weight.module).__name__ != "GptOssExperts"):
                halves = (0, 1, 2), (1, 2, 2)
            else:
                halves = (0, rows // 2, rows), (rows // 2, rows, rows)
            return [Found(weight, name, Part(weight.out, *half))
                    for name, half in zip(("ffn.gate", "ffn.up"), halves, strict=True)]
    return [Found(weight, role)]


def _fused_qkv(weight: Weight, module: Any, model_type: str, config: Any) -> list[tuple[str, tuple[int, int, int]]]:
    """(role, (start, stop, period)) of a projection to queries, keys and values, as the family splits its output."""
    rows = weight.outputs
    heads = config.num_attention_heads
    names = ("attn.q", "attn.k", "attn.v")
    size = getattr(module, "head_dim", None) or getattr(config, "head_dim", None) or config.hidden_size // heads
    form = _FUSED.get(model_type)
    if model_type == "gpt_bigcode":
        form = "blocks" if module.multi_query else "heads"
    elif model_type == "falcon":
        form = "groups" if module.new_decoder_architecture else "blocks" if module.multi_query else "heads"
    if form == "blocks":  # all queries, all keys, all values
        queries = heads * size
        keys = (rows - queries) // 2
        cuts = (0, queries, queries + keys, rows)
        return [(name, (cuts[i], cuts[i + 1], rows)) for i, name in enumerate(names)]
    if form == "heads":  # query, key and value of the first head, then those of the second, ...
        return [(name, (i * size, (i + 1) * size, 3 * size)) for i, name in enumerate(names)]
    if form == "groups":  # the queries that share a key, the key, the value
        period = (heads // module.num_kv_heads + 2) * size
        cuts = (0, period - 2 * size, period - size, period)
        return [(name, (cuts[i], cuts[i + 1], period)) for i, name in enumerate(names)]
    if form == "quarters":  # CodeGen was trained on four devices; each has its queries, values and keys
        size, order = rows // 12, (names[0], names[2], names[1])
        return [(name, (i * size, (i + 1) * size, 3 * size)) for i, name in enumerate(order)]
    raise CofituneError(
        f"Model type '{model_type}': {weight.path} holds queries, keys and values together, and it is not known in "
        f"which order; say it in the config, such as model.roles: {{attn.q: \"{weight.path}[0:{heads * size}]\"}}."
    )


_FUSED = {
    "phi3": "blocks", "gpt2": "blocks", "openai-gpt": "blocks", "mpt": "blocks", "phi4_multimodal": "blocks",
    "gpt_neox": "heads", "gpt_neox_japanese": "heads", "bloom": "heads", "persimmon": "heads", "minimax": "heads",
    "codegen": "quarters",
}  # fmt: skip


def _is_transposed(weight: Weight) -> bool:
    """True for experts [experts, in, out], told by their class: not all have the flag of transformers' decorator."""
    return type(weight.module).__name__ in ("Llama4TextExperts", "GptOssExperts")


# Roles given by the user ----------------------------------------------------------------------------------------------

_GIVEN = re.compile(r"(?P<path>[\w.]+?)(?:\[(?P<start>\d{1,9}):(?P<stop>\d{1,9})(?:/(?P<period>\d{1,9}))?\])?")


def by_map(layer: nn.Module, given: Mapping[str, str | list[str]]) -> Iterator[Found]:
    """Find the weights that `model.roles` names in a layer: role -> "mlp.fc1", "attn.qkv[0:64]" (rows 0 to 63) or
    "attn.qkv[0:16/48]" (the first 16 of every 48 rows), or a list of these.

    Raises:
        CofituneError: an unknown role, a malformed entry, or rows beyond the weight.
    """
    present = {weight.path: weight for weight in weights(layer)}
    for role, entries in given.items():
        if role not in ROLES:
            raise CofituneError(f"model.roles names the role {role!r}; known are {', '.join(ROLES)}.")
        for entry in [entries] if isinstance(entries, str) else entries:
            match = _GIVEN.fullmatch(str(entry).removesuffix(".weight"))
            if match is None:
                raise CofituneError(
                    f"model.roles.{role} is {entry!r}; write a weight's place in its layer, such as mlp.fc1, and "
                    "perhaps its rows: attn.qkv[0:64], or attn.qkv[0:16/48] for the first 16 of every 48."
                )
            weight = present.get(match["path"])
            if weight is None:
                continue
            part = None
            if match["start"] is not None:
                start, stop, period = int(match["start"]), int(match["stop"]), int(match["period"] or weight.outputs)
                if not (start < stop <= period <= weight.outputs) or weight.outputs % period:
                    raise CofituneError(
                        f"model.roles.{role} is {entry!r}, but {match['path']} has {weight.outputs} rows (its shape is "
                        f"{list(weight.shape)})."
                    )
                part = Part(weight.out, start, stop, period)
            yield Found(weight, role, part)
