"""What training a region costs beside what people use: transformers' Trainer in full, the same region frozen by
`requires_grad`, and LoRA.

python benchmarks/studies/train_region.py MODEL DATA.jsonl [--steps 20] [--rounds 3] [--dtype bfloat16]

All sides train on the same rows in the same batches from the same weights, in turn in one process, round by round; the
figures are tokens (padding not counted) per second of the steps after the first two, and medians of each round's
ratios. The others pad their batches, as Trainer's collator does. Memory is measured in a process of its own for each
side: what is resident at the peak of training, and how much of it came with the training once the model was loaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from cofitune_fast.data import collate, encode_examples, read_examples
from cofitune_fast.json_text import write_json
from cofitune_fast.memory import PeakMemory
from cofitune_fast.memory.abilities import frozen_prefix
from cofitune_fast.memory.prefix_cache import PrefixCache
from cofitune_fast.memory.settings import MemorySettings
from cofitune_fast.models import load_model
from cofitune_fast.models.fingerprint import tensor_digests
from cofitune_fast.regions import BaseInfo, Region
from cofitune_fast.training import CoFiTuneTrainer, TrainOptions
from cofitune_fast.training.batching import FixedBatches, KeyedRows

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import command, provenance

WARM = 2  # steps that are not timed
BATCH, SEED = 8, 0


class Watch(TrainerCallback):
    """Seconds and loss of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


class PaddedTrainer(Trainer):
    """transformers' Trainer on given batches."""

    given: FixedBatches

    def get_train_dataloader(self) -> DataLoader:
        return self.accelerator.prepare(DataLoader(
            self.train_dataset, batch_sampler=self.given, collate_fn=self.data_collator))


@dataclass
class Setup:
    """What all sides have in common."""

    model: str
    rows: list
    batches: FixedBatches
    region: Region
    dtype: str
    steps: int
    pad_token_id: int
    rates: dict[str, float] = field(default_factory=lambda: {
        "full": 1e-4, "frozen": 4e-4, "lora": 1e-3, "ours": 4e-4})

    def arguments(self, rate: str) -> TrainingArguments:
        return TrainingArguments(
            output_dir=tempfile.mkdtemp(), use_cpu=not torch.cuda.is_available(), per_device_train_batch_size=BATCH,
            max_steps=self.steps, learning_rate=self.rates[rate], lr_scheduler_type="constant", adam_beta2=0.95,
            weight_decay=0.1, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, seed=SEED,
            dataloader_pin_memory=False,
        )

    def tokens(self) -> list[int]:
        """Tokens of each step's rows."""
        planned = (list(self.batches) * (1 + self.steps // len(self.batches)))[: self.steps]
        return [sum(len(self.rows[index].input_ids) for index in batch) for batch in planned]


class Peer:
    """transformers' Trainer on a model that `change` prepares."""

    def __init__(self, setup: Setup, rate: str, change: Callable[[Any], Any]):
        self.setup, self.rate = setup, rate
        self.model = change(load_model(setup.model, dtype=setup.dtype).model)
        self.start = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}

    def run(self) -> Watch:
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                if name in self.start:
                    p.copy_(self.start[name])
        watch = Watch()
        trainer = PaddedTrainer(
            self.model, self.setup.arguments(self.rate), train_dataset=self.setup.rows,
            data_collator=lambda rows: collate(rows, self.setup.pad_token_id), callbacks=[watch])
        trainer.given = self.setup.batches
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return watch


class Ours:
    """CoFiTuneTrainer; cached: None computes the prefix, "first" writes the cache anew, "later" reads it."""

    def __init__(self, setup: Setup, cached: str | None = None, **memory: Any):
        self.setup, self.cached = setup, cached
        self.memory = MemorySettings(**memory)
        self.model = load_model(setup.model, dtype=setup.dtype).model
        self.digests = tensor_digests(self.model)
        self.start = {name: p.detach().clone() for name, p in setup.region.parameters(self.model)}
        self.folder = tempfile.mkdtemp()
        if cached == "later":
            self._run("first")

    def run(self) -> Watch:
        if self.cached == "first":
            self.folder = tempfile.mkdtemp()
        return self._run(self.cached)

    def _run(self, cached: str | None) -> Watch:
        with torch.no_grad():
            for name, p in self.setup.region.parameters(self.model):
                p.copy_(self.start[name])
        cache = None
        if cached is not None:
            prefix = frozen_prefix(self.model, self.setup.region)
            cache = PrefixCache.open(self.folder, self.model, prefix, self.digests, 20 * 2**30)
        watch = Watch()
        trainer = CoFiTuneTrainer(
            self.model, self.setup.arguments("ours"), self.setup.region, KeyedRows(self.setup.rows),
            TrainOptions(memory=self.memory), base=BaseInfo("", "", ""), pad_token_id=self.setup.pad_token_id,
            prefix_cache=cache,
            callbacks=[watch])
        trainer.batches = self.setup.batches
        trainer.train()
        if cache is not None:
            cache.close()
        return watch


def frozen(region: Region) -> Callable[[Any], Any]:
    def change(model: Any) -> Any:
        region.apply(model)
        return model.train()

    return change


def lora(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))


SIDES: dict[str, Callable[[Setup], Any]] = {
    "Trainer, full SFT": lambda setup: Peer(setup, "full", lambda model: model.train()),
    "Trainer, region frozen by requires_grad": lambda setup: Peer(setup, "frozen", frozen(setup.region)),
    "Trainer, PEFT LoRA r16 all-linear": lambda setup: Peer(setup, "lora", lora),
    "ours, padded, no cache": lambda setup: Ours(setup, None, packing="off"),
    "ours, padded, from the cache": lambda setup: Ours(setup, "later", packing="off"),
    "ours, first epoch": lambda setup: Ours(setup, "first"),
    "ours, from the cache": lambda setup: Ours(setup, "later"),
}
FULL, FROZEN, LORA, LATER = (list(SIDES)[index] for index in (0, 1, 2, -1))


def make_setup(options: argparse.Namespace) -> Setup:
    tokenizer = load_model(options.model).tokenizer
    rows = encode_examples(read_examples(options.data, options.steps * BATCH), tokenizer, 512)
    batches = FixedBatches([len(row.input_ids) for row in rows], BATCH, SEED, by_length=False)
    return Setup(options.model, rows, batches, Region.parse(options.region), options.dtype, options.steps,
                 tokenizer.pad_token_id)


def measure_memory(options: argparse.Namespace) -> dict[str, int]:
    """Peak and growth of this process's resident memory while one side trains."""
    side = SIDES[options.side](make_setup(options))
    side.start = {} if isinstance(side, Peer) else side.start
    gc.collect()
    with PeakMemory() as before:
        pass
    with PeakMemory() as peak:
        side.run()
    return {"peak": peak.bytes, "training": peak.bytes - before.bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--region", default="ffn.up+ffn.down@50%-75%")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--sides", nargs="*", default=list(SIDES))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.set_verbosity_error()
    if options.side:
        print(json.dumps(measure_memory(options)))
        return
    setup = make_setup(options)
    sides = {name: SIDES[name](setup) for name in options.sides}
    tokens = sum(setup.tokens()[WARM:])
    runs: dict[str, list[Watch]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name, side in sides.items():
            runs[name].append(side.run())
            print(f"round {number + 1}: {name}: {tokens / sum(runs[name][-1].seconds[WARM:]):.0f} tokens/s, last loss "
                  f"{runs[name][-1].losses[-1]:.4f}", flush=True)
    del sides
    gc.collect()
    table = []
    for name in runs:
        seconds = [sum(watch.seconds[WARM:]) for watch in runs[name]]
        row = {"side": name, "tokens_per_second": tokens / statistics.median(seconds)}
        for key, peer in (("of_full", FULL), ("of_frozen", FROZEN), ("of_lora", LORA)):
            if peer in runs:
                row[key] = statistics.median(
                    sum(theirs.seconds[WARM:]) / own for theirs, own in zip(runs[peer], seconds, strict=True))
        if FROZEN in runs and (name.startswith("ours") or name == FROZEN):
            expected = runs[FROZEN][0].losses
            row["loss_differences"] = [own - theirs for own, theirs in zip(runs[name][0].losses, expected, strict=True)]
        row["losses"] = runs[name][0].losses
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--side", name], capture_output=True, text=True,
                              env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
        if done.returncode:
            raise SystemExit(done.stderr)
        row["memory"] = json.loads(done.stdout.splitlines()[-1])
        table.append(row)
    print(f"\n{setup.region}, {options.dtype}, {options.steps} steps of {BATCH} rows, {tokens} tokens timed\n")
    print(f"{'':42}{'tokens/s':>9}{'x full':>8}{'x frozen':>9}{'x LoRA':>8}{'peak MB':>9}{'training':>9}"
          f"{'max loss diff':>15}")
    for row in table:
        ratios = "".join(f"{row[key]:>{width}.2f}" if key in row else " " * width
                         for key, width in (("of_full", 8), ("of_frozen", 9), ("of_lora", 8)))
        worst = f"{max(map(abs, row['loss_differences'])):.2e}" if "loss_differences" in row else ""
        print(f"{row['side']:42}{row['tokens_per_second']:>9.0f}{ratios}{row['memory']['peak'] / 1e6:>9.0f}"
              f"{row['memory']['training'] / 1e6:>9.0f}{worst:>15}")
    if options.json:
        places = {options.model: "MODEL", options.data: "DATA.jsonl"}
        told = {**provenance(), "command": " ".join(places.get(word, word) for word in command().split())}
        write_json(options.json, {"provenance": told, "region": str(setup.region), "dtype": options.dtype,
                                  "steps": options.steps, "batch": BATCH, "tokens": tokens, "sides": table})


if __name__ == "__main__":
    main()
