"""The gradient of a next-token loss by its logits, and by the states before a frozen head: in place against torch.

python benchmarks/compare_softmax.py [--device cpu|cuda] [--rounds 9] [--json FILE]

    by the logits   ours      log_sum_exp, then scaled_softmax_ in the logits' own memory
                    torch     log_softmax in float32, exp, times the scale, back to the logits' dtype
    by the states   ours      the chunked loss that the trainer uses: product, the above, product
                    autograd  cross entropy of the logits as float32, backward through the head
The sums and the softmax have to read the logits twice and write them once: three times their bytes. "Adds MB" is the
peak memory of a call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from bandwidth import bandwidth_sides, settle_threads
from bench_settings import script
from contest import Side, backends, bounds, run_rounds, summary
from memory_use import adds

from cofitune_fast.losses.chunked import hidden_loss
from cofitune_fast.losses.objectives import CrossEntropy
from cofitune_fast.models.head import Head
from cofitune_fast.ops import log_sum_exp, scaled_softmax_

VOCABULARIES = (32000, 49152, 151936)  # Llama 2, SmolLM2, Qwen2
FULL = {"cpu": (256, 576), "cuda": (4096, 4096)}  # tokens, hidden size
QUICK = (16, 8, 100)
ROUNDS = 9


def torch_gradient(logits: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits, -1, dtype=torch.float32).exp_().mul_(scales[:, None]).to(logits.dtype)


def measure(tokens: int, hidden: int, vocabulary: int, device: torch.device, rounds: int) -> dict[str, Any]:
    settled = settle_threads()
    states = torch.randn(tokens, hidden, device=device).bfloat16().requires_grad_()
    weight = torch.randn(vocabulary, hidden, device=device).mul_(hidden**-0.5).bfloat16()
    linear = torch.nn.Linear(hidden, vocabulary, bias=False, device="meta")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    head = Head(linear, vocabulary)
    logits = (states.detach() @ weight.T) * 3
    scales = torch.full((tokens,), 1 / tokens, device=device)
    targets = torch.randint(vocabulary, (tokens,), device=device)
    work = torch.empty_like(logits)

    def ours(backend: str) -> None:
        scaled_softmax_(work, log_sum_exp(work, backend=backend), scales, backend=backend)

    def autograd() -> None:
        torch.nn.functional.cross_entropy((states @ weight.T).float(), targets).backward()

    by_logits, by_states = "by the logits", "by the states"
    names = backends("log_sum_exp", device)
    sides = [
        *(Side(f"ours, {name}", lambda name=name: ours(name), 3 * logits.nbytes, by_logits,
               before=lambda: work.copy_(logits)) for name in names),
        Side("torch", lambda: torch_gradient(logits, scales), part=by_logits, baseline=True),
        Side("ours", lambda: hidden_loss(states, head, CrossEntropy(targets), 1 / tokens).backward(),
             part=by_states, before=lambda: setattr(states, "grad", None)),
        Side("autograd", autograd, part=by_states, before=lambda: setattr(states, "grad", None), baseline=True),
    ]
    for side in sides:
        if side.before:
            side.before()
        side.work()
        side.memory = adds(side.work, device)
    sides += bandwidth_sides(device, 64)
    times = run_rounds(sides, rounds, device)
    return {"name": f"softmax of {tokens} tokens, hidden {hidden}, vocabulary {vocabulary}, bfloat16", "tokens": tokens,
            "hidden": hidden, "vocabulary": vocabulary, "device": device.type, "rounds": rounds, **settled,
            "bounds": bounds(sides, times), "sides": summary(sides, times, unit=logits.numel())}


def compare(device: torch.device, quick: bool = False, rounds: int = ROUNDS) -> Iterator[dict[str, Any]]:
    for workload in [QUICK] if quick else [(*FULL[device.type], vocabulary) for vocabulary in VOCABULARIES]:
        yield measure(*workload, device, rounds)


if __name__ == "__main__":
    script("softmax", __doc__, compare)
