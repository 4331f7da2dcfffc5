"""TRL's SFTTrainer in full and with LoRA, beside the same trainer with our region and anchor, and CoFiTuneTrainer.

python benchmarks/compare_trl.py [--steps 12] [--rounds 5] [--checkpointing off] [--json FILE] [--tiny]

All sides train SmolLM2-135M-Instruct on the demo's rows, in the same batches from the same weights, in turn in one
process, round by round. Tokens per second (padding and the anchor's texts not counted) are of the steps after the first
two; ratios are medians of each round's, with the smallest and the largest. Peak memory is measured in a process of its
own for each side. The loss is that of the demo's valid rows after the last step, and the drift the KL to the base on
instructions that no side has seen, both read in the same way for all. `--tiny` takes a random model and three steps.

TRL's settings are its own defaults, gradient checkpointing and bf16 autocast among them. Its AdamW keeps moments of the
weights' dtype; MaskedAdamW keeps float32 ones. On a CPU, TRL computes the logits of all places, and on a GPU only those
of the response, as the others do everywhere. No side hashes weights or writes checkpoints.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

import cofitune_fast as cf
from cofitune_fast.anchor import Anchor
from cofitune_fast.data import batches, label_predictors
from cofitune_fast.demo import data_folder
from cofitune_fast.demo.settings import demo_model
from cofitune_fast.json_text import write_json
from cofitune_fast.memory import PeakMemory
from cofitune_fast.models.head import logits_at
from cofitune_fast.scoring.drift import BaseStates, base_states
from cofitune_fast.training.batching import FixedBatches, KeyedRows

sys.path.insert(0, str(Path(__file__).parent))
from provenance import provenance

WARM, BATCH, SEED, LENGTH = 2, 8, 1, 192
RATES = {"full": 1e-4, "lora": 1e-3, "region": 4e-4}


class Watch(TrainerCallback):
    """Time at the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Seconds of the steps after the first WARM."""
        return self.ends[-1] - self.ends[WARM - 1]


class GivenBatches(SFTTrainer):
    """SFTTrainer on given batches of rows."""

    given: FixedBatches

    def get_train_dataloader(self) -> DataLoader:
        return self.accelerator.prepare(DataLoader(
            self.train_dataset, batch_sampler=self.given, collate_fn=self.data_collator))


@dataclass
class Setup:
    """What all sides have in common."""

    base: Any
    tokenizer: Any
    rows: list
    valid: list
    instructions: list
    region: cf.Region
    anchor: Anchor
    steps: int
    checkpointing: bool

    def batches(self, anchor_rows: int = 0) -> FixedBatches:
        anchor = range(len(self.rows), len(self.rows) + len(self.anchor.rows)) if anchor_rows else ()
        return FixedBatches([len(row.input_ids) for row in self.rows], BATCH, SEED, by_length=False, anchor=anchor,
                            anchor_rows=anchor_rows)

    @property
    def tokens(self) -> int:
        """Tokens of the rows of the timed steps."""
        planned = list(self.batches())[WARM:self.steps]
        return sum(len(self.rows[index].input_ids) for batch in planned for index in batch)

    def arguments(self, rate: str) -> SFTConfig:
        return SFTConfig(
            output_dir=tempfile.mkdtemp(), use_cpu=not torch.cuda.is_available(), per_device_train_batch_size=BATCH,
            max_steps=self.steps, learning_rate=RATES[rate], lr_scheduler_type="constant", adam_beta2=0.95,
            weight_decay=0.1, gradient_checkpointing=self.checkpointing, max_length=LENGTH, logging_steps=self.steps,
            save_strategy="no", report_to="none", disable_tqdm=True, seed=SEED, dataloader_pin_memory=False,
        )


Trained = tuple[Any, Watch]


def trl(setup: Setup, rate: str, model: Any = None, callbacks: tuple[TrainerCallback, ...] = (),
        **given: Any) -> Trained:
    """Train `model`, by default a copy of the base, by SFTTrainer."""
    watch = Watch()
    data = Dataset.from_list([
        {"input_ids": row.input_ids, "labels": [-100] * row.response_start + row.input_ids[row.response_start:]}
        for row in setup.rows])
    trainer = GivenBatches(
        model or copy.deepcopy(setup.base), setup.arguments(rate), train_dataset=data, processing_class=setup.tokenizer,
        callbacks=[watch, *callbacks], **given)
    trainer.given = setup.batches()
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.train()
    return trainer.model, watch


def full(setup: Setup) -> Trained:
    return trl(setup, "full")


def lora(setup: Setup) -> Trained:
    from peft import LoraConfig

    model, watch = trl(setup, "lora", peft_config=LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    return model.merge_and_unload(), watch


def region(setup: Setup, anchored: bool) -> Trained:
    model = copy.deepcopy(setup.base)
    optimizer = cf.MaskedAdamW(
        setup.region.apply(model), lr=RATES["region"], betas=(0.9, 0.95), weight_decay=0.1, max_grad_norm=None)
    protect = cf.protect(model, anchor=setup.anchor) if anchored else None
    callback = cf.CoFiTuneCallback(setup.region, protect, base=cf.BaseInfo("", "", ""), prove=False)
    return trl(setup, "region", model, (callback,), optimizers=(optimizer, None))


def ours(setup: Setup) -> Trained:
    model, watch = copy.deepcopy(setup.base), Watch()
    trainer = cf.CoFiTuneTrainer(
        model, setup.arguments("region"), setup.region, KeyedRows(setup.rows, setup.anchor),
        cf.TrainOptions(anchor=setup.anchor), base=cf.BaseInfo("", "", ""), pad_token_id=setup.tokenizer.pad_token_id,
        callbacks=[watch])
    trainer.batches = setup.batches(setup.anchor.settings.rows)
    trainer.train()
    return model, watch


SIDES: dict[str, Callable[[Setup], Trained]] = {
    "SFTTrainer, full": full,
    "SFTTrainer, LoRA r16 all-linear": lora,
    "SFTTrainer, region": lambda setup: region(setup, anchored=False),
    "SFTTrainer, region and anchor": lambda setup: region(setup, anchored=True),
    "CoFiTuneTrainer, region and anchor": ours,
}
FULL, LORA = list(SIDES)[:2]


def make_setup(options: argparse.Namespace) -> Setup:
    if options.tiny:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from tiny import make_tiny_model, make_tiny_tokenizer

        model, tokenizer = make_tiny_model(dtype=getattr(torch, options.dtype)), make_tiny_tokenizer()
    else:
        loaded = cf.load_model(demo_model(), dtype=options.dtype)
        model, tokenizer = loaded.model, loaded.tokenizer

    def rows(place: str, count: int) -> list:
        return cf.encode_examples(cf.read_examples(data_folder() / place, count), tokenizer, LENGTH)

    few = 4 if options.tiny else 60
    settings = cf.AnchorSettings(texts=few, tokens=8) if options.tiny else cf.AnchorSettings()
    return Setup(
        model, tokenizer, rows("speciality/train.jsonl", options.steps * BATCH), rows("speciality/valid.jsonl", few),
        rows("versatility/valid/instruction/responses.jsonl", few), cf.Region.parse(options.region),
        cf.open_anchor(model, tokenizer, settings), options.steps, options.checkpointing == "on")


@torch.no_grad()
def loss(model: Any, rows: list, pad_token_id: int) -> float:
    """Mean negative log-likelihood per response token, in nats."""
    total, count = 0.0, 0
    for _, batch in batches(rows, pad_token_id, batch_size=BATCH):
        mask, _ = label_predictors(batch["labels"])
        given = {name: tensor.to(model.device) for name, tensor in batch.items()}
        targets = given["labels"][:, 1:][mask[:, :-1].to(model.device)]
        logits = logits_at(model, given, mask).float()
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        count += len(targets)
    return total / count


def judged(setup: Setup, trained: Any, states: BaseStates) -> dict[str, float]:
    """Loss and drift of the trained weights in a model that no trainer has touched."""
    model, weights = copy.deepcopy(setup.base), trained.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return {"valid_loss": loss(model, setup.valid, setup.tokenizer.pad_token_id), "drift": states.drift(model).value}


def peak(options: argparse.Namespace) -> dict[str, int]:
    """Peak and growth of this process's memory while one side trains a copy of the base."""
    setup = make_setup(options)
    with PeakMemory() as before:
        pass
    with PeakMemory() as during:
        SIDES[options.side](setup)
    return {"peak_bytes": during.bytes, "added_bytes": during.bytes - before.bytes}


def peak_in_a_process(name: str) -> dict[str, int]:
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--side", name], capture_output=True, text=True,
                          env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def contest(setup: Setup, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per side: tokens per second, ratios to full SFT and LoRA within each round, loss, drift and memory."""
    states = base_states(setup.base, setup.instructions, setup.tokenizer.pad_token_id)
    rates: dict[str, list[float]] = {name: [] for name in options.sides}
    results: dict[str, dict[str, float]] = {}
    for number in range(options.rounds):
        for name in (options.sides if number % 2 else reversed(options.sides)):
            trained, watch = SIDES[name](setup)
            rates[name].append(setup.tokens / watch.seconds)
            if name not in results:
                results[name] = judged(setup, trained, states)
            print(f"round {number + 1}: {name}: {rates[name][-1]:.0f} tokens/s", file=sys.stderr, flush=True)
    table = []
    for name, own in rates.items():
        row: dict[str, Any] = {"side": name, "tokens_per_second": spread(own)}
        for key, peer in (("times_full", FULL), ("times_lora", LORA)):
            if peer in rates:
                row[key] = spread([mine / theirs for mine, theirs in zip(own, rates[peer], strict=True)])
        table.append(row | results[name] | ({} if options.tiny else peak_in_a_process(name)))
    return table


def describe(table: list[dict[str, Any]]) -> str:
    lines = [f"{'':36}{'tokens/s':>9}{'x full (least-most)':>21}{'x LoRA (least-most)':>21}{'valid loss':>11}"
             f"{'drift':>8}{'peak MB':>9}{'added MB':>9}"]
    for row in table:
        ratios = "".join(
            f"{row[key]['median']:>8.2f} ({row[key]['least']:.2f}-{row[key]['most']:.2f})" if key in row else " " * 21
            for key in ("times_full", "times_lora"))
        memory = "".join(f"{row[key] / 1e6:>9.0f}" for key in ("peak_bytes", "added_bytes") if key in row)
        lines.append(f"{row['side']:36}{row['tokens_per_second']['median']:>9.0f}{ratios}{row['valid_loss']:>11.3f}"
                     f"{row['drift']:>8.4f}{memory}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--region", default="ffn@40%-75%")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checkpointing", choices=["on", "off"], default="on")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--sides", nargs="*", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--tiny", action="store_true", help="a random model, three steps, one round, no memory")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.tiny:
        options.steps, options.rounds, options.region = 3, 1, "ffn@25%-75%"
    logging.set_verbosity_error()
    disable_progress_bars()
    if options.side:
        print(json.dumps(peak(options)))
        return
    setup = make_setup(options)
    print(f"{setup.region}, {options.dtype}, checkpointing {options.checkpointing}, {options.steps} steps of {BATCH} "
          f"rows, {setup.tokens} tokens timed; base: valid loss "
          f"{loss(setup.base, setup.valid, setup.tokenizer.pad_token_id):.3f}", flush=True)
    table = contest(setup, options)
    print(describe(table))
    if options.json:
        write_json(options.json, {
            "benchmark": "compare_trl", "provenance": provenance(), "region": str(setup.region), "dtype": options.dtype,
            "checkpointing": options.checkpointing, "steps": options.steps, "rounds": options.rounds, "batch": BATCH,
            "tokens": setup.tokens, "learning_rates": RATES, "sides": table})


if __name__ == "__main__":
    main()
