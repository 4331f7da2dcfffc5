"""Cells: the weights of one role in one layer, each a whole tensor or a regular part of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

ROLES = (
    "attn.q_a", "attn.q", "attn.kv_a", "attn.k", "attn.v", "attn.gate", "attn.o", "mix.in", "mix.out",
    "ffn.gate", "ffn.up", "ffn.down", "ffn.router",
)  # fmt: skip
GROUPS = {"mha": ROLES[:9], "ffn": ROLES[9:12]}
"""Names for all roles of a layer's token mixer and of its feed-forward part. The router of experts is in no group."""


@dataclass(frozen=True)
class Part:
    """Part of a tensor: the places start, ..., stop - 1 of every `period` along `dim`.

    Roles that share a tensor own such parts: the queries are the first block of phi3's `qkv_proj` (period: all rows),
    the first third of every head's rows in GPT-NeoX, and every second column of gpt-oss's experts (period 2).
    """

    dim: int
    start: int
    stop: int
    period: int

    def of(self, tensor: Tensor) -> Tensor:
        """View of the part. With n > 1 periods, `dim` becomes two dimensions [n, stop - start]."""
        periods, rest = divmod(tensor.shape[self.dim], self.period)
        if rest:
            raise ValueError(f"{tensor.shape} has no whole number of {self.period} along dimension {self.dim}")
        if periods == 1:
            return tensor.narrow(self.dim, self.start, self.stop - self.start)
        unflattened = tensor.unflatten(self.dim, (periods, self.period))
        return unflattened.narrow(self.dim + 1, self.start, self.stop - self.start)

    @property
    def size(self) -> int:
        return self.stop - self.start

    def as_json(self) -> dict[str, int]:
        return {"dim": self.dim, "start": self.start, "stop": self.stop, "period": self.period}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Part:
        return cls(**{key: int(value[key]) for key in ("dim", "start", "stop", "period")})


@dataclass(frozen=True)
class Cell:
    """One weight of one role of one layer: all of `parameter`, or its `part` if roles share the tensor.

    A role of a layer may have several cells, such as the experts' and the shared expert's `ffn.up`. The projection's
    bias, if it has one, belongs to the cell too.

    parameter, bias: names of tensors. bias_part: the cell's part of the bias.
    out: dimension of `parameter` along which its outputs lie: 0 for nn.Linear, 1 for GPT-2's Conv1D, and 1 or 2 for
        experts [experts, ...].
    block: name of the module that holds the attention, the mixer or the FFN.
    shared: the other layers that use the same tensor.
    """

    layer: int
    role: str
    parameter: str
    part: Part | None = None
    out: int = 0
    bias: str | None = None
    bias_part: Part | None = None
    block: str = ""
    shared: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name of the trained tensor: the parameter's, with the role in brackets for a part."""
        return self.parameter if self.part is None else part_name(self.parameter, self.role)

    @property
    def bias_name(self) -> str | None:
        if self.bias is None or self.bias_part is None:
            return self.bias
        return part_name(self.bias, self.role)


@dataclass(frozen=True)
class Block:
    """Attention, mixer or FFN of a layer, with the number of its units.

    heads, key_value_heads: of an attention whose output projection has whole heads as its input; 0 otherwise.
    neurons: inputs of `ffn.down`, of each expert. experts: their number; 0 for a block without experts.
    """

    name: str
    layer: int
    kind: str
    heads: int = 0
    key_value_heads: int = 0
    neurons: int = 0
    experts: int = 0


def part_name(parameter: str, role: str) -> str:
    return f"{parameter}[{role}]"


def whole_name(name: str) -> str:
    """Name of the tensor that a trained name belongs to.

    >>> whole_name("model.layers.0.self_attn.qkv_proj.weight[attn.q]")
    'model.layers.0.self_attn.qkv_proj.weight'
    """
    return name.partition("[")[0]
