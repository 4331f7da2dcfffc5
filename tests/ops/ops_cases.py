"""What the ops are tested on, and how exactly: backends, tolerances and tensors, as data."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from cofitune_fast.ops import masked_adamw_, native

needs_native = pytest.mark.skipif(native.load_error() is not None, reason=str(native.load_error()))
BACKENDS = ["reference", pytest.param("cpu", marks=needs_native)]

# Against float64. float32: a handful of roundings of 6e-8 each. bf16_sr: one bfloat16 unit (2^-7), as stochastic
# rounding may choose the farther neighbor; its moments are float32.
TOLERANCE = {
    "fp32": {"rtol": 2e-6, "atol": 1e-7},
    "bf16_sr": {"rtol": 2**-7, "atol": 1e-7},
    "sum": {"rtol": 1e-5, "atol": 1e-5},  # some hundred float32 terms of order 1, in any order
}
DTYPES = {"fp32": torch.float32, "bf16_sr": torch.bfloat16}
SHAPES = [(1,), (17,), (4097,), (3, 5), (64, 33), (2, 3, 5), ()]
LAYOUTS = ["none", "row", "column", "element"]
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


@dataclass
class Case:
    """The tensors of one call; `step` applies the op to copies of them and returns these."""

    storage: str
    params: list[torch.Tensor]
    grads: list[torch.Tensor]
    exp_avgs: list[torch.Tensor]
    exp_avg_sqs: list[torch.Tensor]
    masks: list[torch.Tensor | None] = field(default_factory=list)

    def lists(self) -> list[list[torch.Tensor]]:
        return [self.params, self.grads, self.exp_avgs, self.exp_avg_sqs]

    def copy(self) -> Case:
        lists = [[tensor.clone() for tensor in tensors] for tensors in self.lists()]
        return Case(self.storage, *lists, self.masks)

    def step(self, **options) -> Case:
        result = self.copy()
        masked_adamw_(*result.lists(), result.masks, storage=self.storage, **{**OPTIONS, "step": 3, **options})
        return result


def make_mask(shape: tuple[int, ...], layout: str, generator: torch.Generator) -> torch.Tensor | None:
    """Factors in [0, 1], a fifth of them exactly 0 and a fifth exactly 1."""
    if layout == "none" or not shape:
        return None
    size = {"row": (*shape[:-1], 1) if len(shape) > 1 else shape, "column": (1,) * (len(shape) - 1) + shape[-1:],
            "element": shape}[layout]
    return (torch.rand(size, generator=generator) * 5 / 3 - 1 / 3).clamp(0, 1)


def make_case(storage: str = "fp32", layout: str = "none", shapes=SHAPES, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(shape, scale=1.0):
        return torch.randn(shape, generator=generator) * scale

    return Case(
        storage,
        [normal(shape).to(DTYPES[storage]) for shape in shapes],
        [normal(shape).to(DTYPES[storage]) for shape in shapes],
        [normal(shape, 0.1) for shape in shapes],
        [normal(shape, 0.1).square() for shape in shapes],
        [make_mask(shape, layout, generator) for shape in shapes],
    )


def assert_same_bits(a: Case, b: Case) -> None:
    for ours, theirs in zip(a.lists(), b.lists(), strict=True):
        for x, y in zip(ours, theirs, strict=True):
            assert x.dtype == y.dtype and torch.equal(bits(x), bits(y))


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view({4: torch.int32, 2: torch.int16}[x.element_size()])
