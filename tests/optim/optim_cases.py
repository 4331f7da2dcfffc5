"""Parameters, gradients and masks that the tests of MaskedAdamW share."""

from __future__ import annotations

import hashlib

import torch
from ops.ops_cases import bits

from cofitune_fast.ops._storage import STORAGES

# A matrix with two scale blocks in a row, a vector, and a matrix with less than one block.
SHAPES = {"up.weight": (8, 300), "up.bias": (8,), "down.weight": (6, 8)}


def dtype_of(storage):
    return STORAGES[storage].weight


def make_pairs(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(name, torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)))
            for name, shape in SHAPES.items()]


def make_masks(name="up.weight"):
    """Row factors, one of them 0, as float32."""
    return {name: torch.linspace(0, 1, SHAPES[name][0])[:, None]}


def set_grads(pairs, seed, scale=1.0):
    """Gradients by name, whatever the order of the pairs."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=generator) * scale for name, shape in SHAPES.items()}
    for name, p in pairs:
        p.grad = drawn[name].to(p.dtype)


def run(optimizer, pairs, steps):
    for step in steps:
        set_grads(pairs, step)
        optimizer.step()


def values(pairs):
    return [p.detach().clone() for _, p in pairs]


def random_offset(name):
    """Where a parameter's random numbers begin, as docs/numerics.md says."""
    return (int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") >> 2) << 32


def assert_same(first, second):
    """The same bits, in weights or in the states of two optimizers by name."""
    if isinstance(first, list):
        for index, (x, y) in enumerate(zip(first, second, strict=True)):
            assert torch.equal(bits(x), bits(y)), f"tensor {index} differs"
        return
    assert first.keys() == second.keys()
    for name, state in first.items():
        assert state.keys() == second[name].keys()
        for key, value in state.items():
            other = second[name][key]
            if isinstance(value, torch.Tensor) and value.dim():
                assert value.dtype == other.dtype and torch.equal(bits(value), bits(other)), f"{key} of {name} differs"
            else:
                assert value == other, f"{key} of {name}: {value} and {other}"
