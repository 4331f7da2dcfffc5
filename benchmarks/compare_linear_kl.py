"""KL between two hidden states' next-token distributions: in chunks, against autograd through the full logits.

python benchmarks/compare_linear_kl.py [--device cpu|cuda] [--rounds 3] [--json FILE]

Loss and the gradients by both hidden states. "Adds MB" is the peak memory of a call: the full way holds some eight
buffers of tokens x vocabulary in float32. Hidden states and head are float32 on a CPU and bfloat16 on a GPU, where the
full way multiplies in bfloat16 and goes on in float32, as training loops do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from bandwidth import settle_threads
from bench_settings import script
from contest import Side, backends, run_rounds, summary
from memory_use import adds

from cofitune_fast.ops import linear_kl

VOCABULARIES = (32000, 49152, 151936)  # Llama 2, SmolLM2, Qwen2
FULL = {  # (tokens, hidden size): the full way needs less than 6 GB on a CPU, 40 GB on a GPU
    "cpu": [(512, 576), (128, 2048)],
    "cuda": [(4096, 576), (4096, 2048)],
}
QUICK = (16, 8, 100)
ROUNDS = 3


def full_logits(p: torch.Tensor, q: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    log_q, log_p = ((h @ weight.T).float().log_softmax(-1) for h in (q, p))
    return torch.nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def measure(tokens: int, hidden: int, vocabulary: int, device: torch.device, rounds: int) -> dict[str, Any]:
    settled = settle_threads()
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    p, q = (torch.randn(tokens, hidden, device=device).to(dtype).requires_grad_() for _ in range(2))
    weight = torch.randn(vocabulary, hidden, device=device).mul_(hidden**-0.5).to(dtype)

    def forget() -> None:
        p.grad = q.grad = None

    sides = [Side(f"ours, {name}", lambda name=name: linear_kl(p, q, weight, backend=name).backward())
             for name in backends("linear_kl", device)]
    sides.append(Side("full logits", lambda: full_logits(p, q, weight).backward(), baseline=True))
    for side in sides:
        side.before = forget
        side.before()
        side.work()
        side.before()
        side.memory = adds(side.work, device)
    times = run_rounds(sides, rounds, device)
    return {"name": f"KL of {tokens} tokens, hidden {hidden}, vocabulary {vocabulary}", "tokens": tokens,
            "hidden": hidden, "vocabulary": vocabulary, "dtype": str(dtype).removeprefix("torch."),
            "device": device.type, "rounds": rounds, **settled, "sides": summary(sides, times)}


def compare(device: torch.device, quick: bool = False, rounds: int = ROUNDS) -> Iterator[dict[str, Any]]:
    workloads = [(*shape, vocabulary) for shape in FULL[device.type] for vocabulary in VOCABULARIES]
    for tokens, hidden, vocabulary in [QUICK] if quick else workloads:
        yield measure(tokens, hidden, vocabulary, device, rounds)


if __name__ == "__main__":
    script("linear_kl", __doc__, compare)
