"""The memory that `plan` predicts, held against what training holds.

python benchmarks/studies/plan_check.py real [MODEL]     # two steps of a real run on the CPU, SmolLM2-135M by default
python benchmarks/studies/plan_check.py fake             # a whole step of the 7B, 13B and 33B layouts on fake tensors

real: the peak of live tensors (planning/tracker.py) and that of PyTorch's allocator (torch.profiler) from the first
step to the last, of the run that `cofitune train` makes, without the frozen and the region's weights, which stood
before.
fake: the tracker's peak of forward, loss and backward of all layers; the plan has measured one layer of each kind.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from itertools import accumulate
from pathlib import Path

import torch
from torch._guards import detect_fake_mode
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "planning"))
from plan_cases import TrainingStep, make_batch

from cofitune_fast.data.encode import Encoded
from cofitune_fast.demo.settings import demo_model
from cofitune_fast.memory.settings import MemorySettings
from cofitune_fast.models import load_model
from cofitune_fast.planning.planner import Planner, Settings, fake_model
from cofitune_fast.planning.tracker import LiveBytes
from cofitune_fast.regions import BaseInfo, Region
from cofitune_fast.training import TrainOptions, train_region

ROWS, LENGTH, RESPONSE = 4, 256, 96
REGION = "ffn.up+ffn.down@50%-75%"
REAL = {
    "full SFT": ("full", {}),
    "full SFT, checkpointing": ("full", {"gradient_checkpointing": True}),
    "region": (REGION, {}),
    "region, checkpointing": (REGION, {"gradient_checkpointing": True}),
    "region, two micro-batches": (REGION, {"accumulation": 2}),
    **{f"region, {storage}": (REGION, {"storage": storage}) for storage in ("bf16_split", "bf16", "int8")},
    "region, exact release": (REGION, {"gradient_release": "exact"}),
}
LAYOUTS = {"7B": (4096, 11008, 32, 32), "13B": (5120, 13824, 40, 40), "33B": (6656, 17920, 60, 52)}


class AllocatorPeak:
    """Afterwards `.peak` is the most that PyTorch's CPU allocator gave out in the block, over what stood before."""

    def __enter__(self) -> AllocatorPeak:
        gc.collect()  # what is freed in the block must have been allocated in it
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._profile.__exit__(None, None, None)
        events = [event for event in self._profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        events.sort(key=lambda event: event.start_ns())
        self.peak = max(accumulate(event.nbytes() for event in events))


def line(name: str, planned: int, *measured: int) -> None:
    figures = "".join(f"{size / 2**20:12.1f} MiB {100 * (planned / size - 1):+6.2f} %" for size in measured)
    print(f"{name:44}{planned / 2**20:12.1f} MiB{figures}", flush=True)


def real(source: str) -> None:
    print(f"{'':44}{'plan':>16}{'live tensors':>16}{'':9}{'allocator':>16}")
    for name, (region, changes) in REAL.items():
        settings = Settings(batch_size=ROWS, length=LENGTH, response_length=RESPONSE, **changes)
        plan = Planner(fake_model(source), Region.parse(region)).plan(settings)
        measured = []
        for watch in (LiveBytes(), AllocatorPeak()):
            train(source, Region.parse(region), settings, watch)
            measured.append(watch.peak)
        line(name, plan.peak - plan.parts["frozen_weights"] - plan.parts["region_weights"], *measured)


def train(source: str, region: Region, settings: Settings, watch: LiveBytes | AllocatorPeak) -> None:
    """Two steps under `watch`. Every other row is a token shorter, so that the batches have padding."""
    loaded = load_model(source, dtype="bfloat16", device="cpu")
    lengths = [LENGTH - number % 2 for number in range(2 * ROWS)]
    rows = [Encoded(torch.randint(5, 40000, (length,)).tolist(), length - RESPONSE, "row") for length in lengths]
    training = {
        "per_device_train_batch_size": settings.rows, "gradient_accumulation_steps": settings.accumulation,
        "gradient_checkpointing": settings.gradient_checkpointing, "max_steps": 2,
        "train_sampling_strategy": "sequential",
    }
    memory = MemorySettings(prefix_cache="off", packing="off", gradient_release=settings.gradient_release)
    base = BaseInfo.of(loaded.model, source)
    with tempfile.TemporaryDirectory() as folder, watch:
        train_region(loaded.model, region, rows, folder, training,
                     TrainOptions(storage=settings.storage, memory=memory), base=base,
                     pad_token_id=loaded.tokenizer.pad_token_id)


def fake() -> None:
    print(f"{'':44}{'plan':>16}{'live tensors':>16}")
    for name, (hidden, intermediate, layers, heads) in LAYOUTS.items():
        config = LlamaConfig(vocab_size=32000, hidden_size=hidden, intermediate_size=intermediate,
                             num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads)
        for region in ("ffn.up+ffn.down@25%-50%", "full"):
            for checkpointing in (False, True):
                model = fake_model(config)
                start = time.perf_counter()
                plan = Planner(model, Region.parse(region)).plan(Settings(
                    batch_size=4, length=1024, response_length=512, gradient_checkpointing=checkpointing))
                seconds = time.perf_counter() - start
                model = fake_model(config)
                with detect_fake_mode(next(model.parameters())), LiveBytes() as live:
                    step = TrainingStep(model, Region.parse(region), make_batch(4, 1024, 512),
                                        checkpointing=checkpointing)
                    live.exclude(model.parameters())
                    step()
                planned = sum(plan.parts[part] for part in ("gradients", "activations", "loss", "workspace"))
                line(f"{name} {region}{', checkpointing' * checkpointing} ({seconds:.1f} s)", planned, live.peak)


if __name__ == "__main__":
    if sys.argv[1:2] == ["fake"]:
        fake()
    else:
        real(sys.argv[2] if len(sys.argv) > 2 else str(demo_model()))
