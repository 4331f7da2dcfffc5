"""Storage formats of a trained parameter: the tensors it keeps, and the bytes that a step moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

SCALE_BLOCK = 256  # csrc/include/cofitune/eight_bit.h


@dataclass(frozen=True)
class Storage:
    """One storage format. `moved` is bytes per parameter and step: p, g, m and v are read, p, m and v written."""

    code: int  # the same as in csrc/include/cofitune/adamw_tensor.h
    weight: torch.dtype  # dtype of the parameter, its gradient and its anchor
    moment: torch.dtype
    moved: int
    remainder: bool = False  # an int16 tensor of the parameter's shape: the lower halves of float32 weights
    scaled: bool = False  # a float32 tensor [..., blocks of a row, 2]: the scales of both moments


StorageName = Literal["fp32", "bf16_split", "bf16_sr", "bf16", "int8"]
STORAGES: dict[str, Storage] = {
    "fp32": Storage(0, torch.float32, torch.float32, 28),
    "bf16_split": Storage(1, torch.bfloat16, torch.float32, 26, remainder=True),
    "bf16_sr": Storage(2, torch.bfloat16, torch.float32, 22),
    "bf16": Storage(3, torch.bfloat16, torch.bfloat16, 14),
    "int8": Storage(4, torch.bfloat16, torch.uint8, 10, scaled=True),  # and 16 bytes of scales per 256 parameters
}


def scale_shape(shape: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a parameter's scales: one pair per block of 256 elements of a row; a row's last block may be shorter."""
    columns = shape[-1] if len(shape) else 1
    return (*shape[:-1], -(-columns // SCALE_BLOCK), 2)


def new_state(p: torch.Tensor, storage: str) -> dict[str, torch.Tensor]:
    """The state of a parameter before its first step, all zeros.

    Returns:
        exp_avg and exp_avg_sq in the moments' dtype, of p's shape; with "bf16_split" also remainder, int16, of p's
        shape (zero: the float32 weight equals p); with "int8" also scale, float32, of `scale_shape(p.shape)`.
    """
    form = STORAGES[storage]
    state = {key: torch.zeros(p.shape, dtype=form.moment, device=p.device) for key in ("exp_avg", "exp_avg_sq")}
    if form.remainder:
        state["remainder"] = torch.zeros(p.shape, dtype=torch.int16, device=p.device)
    if form.scaled:
        state["scale"] = torch.zeros(scale_shape(p.shape), dtype=torch.float32, device=p.device)
    return state
