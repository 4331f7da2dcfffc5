"""MoFO against its algorithm written out in float64, and interpolation against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import make_tiny_model

from cofitune_fast.errors import CofituneError
from cofitune_fast.methods.interpolate import interpolate
from cofitune_fast.methods.mofo import MoFO
from cofitune_fast.optim import MaskedAdamW

SHAPES = {"matrix": (6, 10), "vector": (7,), "one": (1,)}
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "max_grad_norm": 1.0}


def tensors(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def reference(steps, share):
    """Chen et al., algorithm 1, with clipping and with decay on what moves; float64."""
    weights = {name: value.double() for name, value in tensors(0).items()}
    first, second = ({name: torch.zeros_like(value) for name, value in weights.items()} for _ in range(2))
    low, high = OPTIONS["betas"]
    for step in range(1, steps + 1):
        grads = {name: value.double() for name, value in tensors(step).items()}
        norm = math.sqrt(sum(float((grad**2).sum()) for grad in grads.values()))
        for name, grad in grads.items():
            grad = grad * min(1.0, 1.0 / (norm + 1e-6))
            first[name] = low * first[name] + (1 - low) * grad
            second[name] = high * second[name] + (1 - high) * grad**2
            change = first[name] / (1 - low**step) / ((second[name] / (1 - high**step)).sqrt() + OPTIONS["eps"])
            change = OPTIONS["lr"] * (change + OPTIONS["weight_decay"] * weights[name])
            size = first[name].abs().flatten()
            moved = torch.zeros_like(size)
            moved[size.argsort(descending=True)[: math.ceil(share * len(size))]] = 1
            weights[name] = weights[name] - moved.view_as(change) * change
    return weights


def run(kind, steps, dtype=torch.float32, **options):
    parameters = {name: torch.nn.Parameter(value) for name, value in tensors(0, dtype).items()}
    optimizer = kind(list(parameters.items()), **{**OPTIONS, **options})
    for step in range(1, steps + 1):
        for name, grad in tensors(step, dtype).items():
            parameters[name].grad = grad
        optimizer.step()
    return parameters, optimizer


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_it_is_the_algorithm(share):
    parameters, _ = run(MoFO, 4, share=share)
    expected = {name: value.float() for name, value in reference(4, share).items()}
    torch.testing.assert_close({name: p.detach() for name, p in parameters.items()}, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("storage", ["bf16_split", "bf16_sr", "bf16"])
def test_in_bfloat16_the_same_share_moves_and_the_moments_are_those_of_adamw(storage):
    parameters, optimizer = run(MoFO, 1, torch.bfloat16, share=0.25, storage=storage, lr=0.5)
    whole, adamw = run(MaskedAdamW, 1, torch.bfloat16, storage=storage, lr=0.5)
    for name, start in tensors(0, torch.bfloat16).items():
        size = optimizer.state[parameters[name]]["exp_avg"].float().abs()
        moves = size >= size.flatten().topk(math.ceil(0.25 * size.numel())).values[-1]
        assert torch.equal(parameters[name], torch.where(moves, whole[name], start))
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[parameters[name]][key], adamw.state[whole[name]][key])
        if storage == "bf16_split":
            rest = adamw.state[whole[name]]["remainder"]
            assert torch.equal(optimizer.state[parameters[name]]["remainder"], torch.where(moves, rest, 0))


def test_int8_cannot_be_ranked():
    with pytest.raises(CofituneError, match="int8"):
        MoFO([("w", torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16)))], share=0.5, storage="int8")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interpolation_is_one_formula_in_float32_and_one_rounding(dtype):
    model = make_tiny_model(dtype=dtype)
    base = {name: parameter.detach().clone() for name, parameter in list(model.named_parameters())[3:9]}
    trained = {name: value + 0.01 * torch.randn_like(value) for name, value in base.items()}
    others = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if name not in base}
    for alpha in (0.25, 0.7, 1.0):
        interpolate(model, base, lambda name, start: trained[name], alpha)
        for name, parameter in model.named_parameters():
            if name in others:
                expected = others[name]
            elif alpha == 1:
                expected = trained[name]
            else:
                expected = (base[name].float() + alpha * (trained[name].float() - base[name].float())).to(dtype)
            assert torch.equal(parameter, expected), (name, alpha)
