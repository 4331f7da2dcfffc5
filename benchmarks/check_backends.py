"""Does every backend of every op agree with its reference on a GPU? A first look, before the tests and the benchmarks.

python benchmarks/check_backends.py

Prints a line per op and backend: the same bits, the largest difference relative to the reference's largest magnitude,
or why the backend cannot run. Ends with status 1 if a backend failed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch

from cofitune_fast.ops import grad_norm, linear_kl, log_sum_exp, masked_adamw_, scaled_softmax_, unit_importance_
from cofitune_fast.ops._registry import OPERATIONS
from cofitune_fast.ops._storage import STORAGES, new_state

SHAPES = ((64, 512), (5, 4097), (1, 17), (300,))
Run = Callable[[str], list[torch.Tensor]]  # backend -> results


def adamw(storage: str, mode: str, device: torch.device) -> Run:
    def run(backend: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        form = STORAGES[storage]
        params, grads = ([torch.randn(shape, device=device).mul_(scale).to(form.weight) for shape in SHAPES]
                         for scale in (0.02, 1e-3))
        masks = [torch.rand(shape[0], *[1] * (len(shape) - 1), device=device) for shape in SHAPES]
        states = [new_state(p, storage) for p in params]
        extra = {f"{key}s": [state[key] for state in states] for key in ("remainder", "scale") if key in states[0]}
        for step in (1, 2):
            clip = grad_norm(grads, 1e-2, backend="reference").clip
            masked_adamw_(params, grads, [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], masks,
                          lr=1e-3, step=step, clip=clip, mask_mode=mode, storage=storage, seed=7, backend=backend,
                          **extra)
        return [*params, *(tensor for state in states for tensor in state.values())]

    return run


def norm(device: torch.device) -> Run:
    tensors = [torch.randn(shape, device=device) for shape in SHAPES]

    def run(backend: str) -> list[torch.Tensor]:
        result = grad_norm(tensors, 1.0, weights=[t.flip(-1).contiguous() for t in tensors], backend=backend)
        return [result.norm, result.clip, *result.row_dots]

    return run


def importance(device: torch.device) -> Run:
    y, grad = (torch.randn(4, 37, 192, device=device).bfloat16() for _ in range(2))
    return lambda backend: [unit_importance_(torch.zeros(3, device=device), y, grad, unit_size=64, backend=backend)]


def divergence(device: torch.device) -> Run:
    p, q = (torch.randn(33, 64, device=device, requires_grad=True) for _ in range(2))
    weight = torch.randn(1000, 64, device=device) / 8

    def run(backend: str) -> list[torch.Tensor]:
        loss = linear_kl(p, q, weight, backend=backend)
        return [loss.detach(), *torch.autograd.grad(loss, (p, q))]

    return run


def sums(device: torch.device) -> Run:
    logits = torch.randn(33, 5003, device=device).bfloat16()
    return lambda backend: [log_sum_exp(logits, backend=backend)]


def softmax(device: torch.device) -> Run:
    logits = torch.randn(33, 5003, device=device).bfloat16()
    log_sums, scales = log_sum_exp(logits, backend="reference"), torch.rand(33, device=device)
    return lambda backend: [scaled_softmax_(logits.clone(), log_sums, scales, backend=backend)]


def cases(device: torch.device) -> Iterator[tuple[str, str, Run]]:
    """(op, what of it, run)."""
    for storage in STORAGES:
        for mode in ("update", "gradient"):
            yield "masked_adamw_", f"{storage}, {mode} mask", adamw(storage, mode, device)
    yield "grad_norm", "with row dots", norm(device)
    yield "unit_importance_", "heads of 64", importance(device)
    yield "linear_kl", "loss and gradients", divergence(device)
    yield "log_sum_exp", "bfloat16", sums(device)
    yield "scaled_softmax_", "bfloat16", softmax(device)


def verdict(results: list[torch.Tensor], reference: list[torch.Tensor]) -> str:
    if all(torch.equal(a, b) for a, b in zip(results, reference, strict=True)):
        return "the same bits"
    worst = max(float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-300))
                for a, b in zip(results, reference, strict=True))
    return f"largest difference {worst:.1e} of the reference's largest magnitude"


def main() -> None:
    device, failed = torch.device("cuda" if torch.cuda.is_available() else "cpu"), 0
    for name, what, run in cases(device):
        reference = run("reference")
        for backend, entry in OPERATIONS[name].backends.items():
            said = entry.refusal(device)
            if said is None:
                try:
                    said = verdict(run(backend), reference)
                except Exception as error:
                    said, failed = f"FAILED: {type(error).__name__}: {error}", failed + 1
            print(f"{name:17}{what:26}{backend:8}{said}", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
