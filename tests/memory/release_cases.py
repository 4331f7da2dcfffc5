"""A small network over the parameters of optim_cases, and ways to train it, for tests of what happens in a backward."""

from __future__ import annotations

import torch
from optim.optim_cases import dtype_of, make_masks, make_pairs

from cofitune_fast.optim import MaskedAdamW, Pull


def network_loss(pairs, seed, scale=1.0):
    """A loss in which every parameter has a gradient; the same for parameters on any device."""
    p = dict(pairs)
    up = p["up.weight"]
    x = torch.randn(5, 300, generator=torch.Generator().manual_seed(seed)).to(up.device, up.dtype)
    hidden = torch.nn.functional.gelu(torch.nn.functional.linear(x, up, p["up.bias"]))
    return (hidden @ p["down.weight"].T).float().square().mean() * scale


def make_trained(storage, optimizer_class=MaskedAdamW, device="cpu", **options):
    """Fresh parameters and an optimizer of them with masks, pull and decay: all that enters a step."""
    pairs = [(name, torch.nn.Parameter(p.detach().to(device))) for name, p in make_pairs(dtype_of(storage))]
    optimizer = optimizer_class(pairs, **{
        "lr": 1e-2, "storage": storage, "seed": 5, "masks": make_masks(), "pull": Pull("l1", 0.05),
        "max_grad_norm": 1e6, **options,
    })
    return pairs, optimizer


def plain_steps(pairs, optimizer, steps, scale=1.0):
    for step in steps:
        network_loss(pairs, step, scale).backward()
        optimizer.step()
        for _, p in pairs:
            p.grad = None


def backward_steps(pairs, optimizer, releasing, steps, scale=1.0):
    """releasing: whose `backward` takes the place of loss.backward()."""
    for step in steps:
        releasing.backward(network_loss(pairs, step, scale))
        optimizer.step()
