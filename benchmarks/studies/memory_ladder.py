"""The memory ladder of a large layout with random weights: one trick a row, what it holds and how fast it is.

python benchmarks/studies/memory_ladder.py [--layout 7B|13B|tiny] [--cap GIB] [--steps 6] [--only WORD ...]
    [--json FILE]

Each row is a process of its own, and on a GPU is held to `--cap` GiB (torch.cuda.set_per_process_memory_fraction): peak
of allocated and reserved memory of a few training steps, tokens per second of those after the first two, and what
`cofitune plan` predicts for the row. Peers: transformers' Trainer in full and with the region frozen, and PEFT's LoRA,
also inside an nf4 base (QLoRA). `tiny` is for a look at the script on any machine.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from train_region import WARM, PaddedTrainer, Watch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainingArguments
from transformers.utils import logging

from cofitune_fast.data import Encoded, collate
from cofitune_fast.json_text import write_json
from cofitune_fast.memory import MemorySettings, PeakMemory
from cofitune_fast.models.quantized import load_quantized
from cofitune_fast.planning.plan import Settings
from cofitune_fast.planning.planner import Planner, fake_model
from cofitune_fast.regions import BaseInfo, Region
from cofitune_fast.training import TrainOptions, train_region

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import provenance

LAYOUTS = {"tiny": (128, 384, 8, 4), "7B": (4096, 11008, 32, 32), "13B": (5120, 13824, 40, 40)}
REGION = "ffn.up+ffn.down@25%-50%"
ROWS, LENGTH, RESPONSE = 4, 1024, 512

# Each row has all that the rows before it have, but for what it names anew.
LADDER: list[tuple[str, dict[str, Any]]] = [
    ("ours: region, all activations", {}),
    ("+ checkpointing above the prefix", {"gradient_checkpointing": True}),
    ("+ prefix from the cache", {"prefix": "cached"}),
    ("+ gradient release, lagged", {"gradient_release": "lagged"}),
    ("+ moments in bf16", {"storage": "bf16"}),
    ("+ moments in 8 bits", {"storage": "int8"}),
    ("+ frozen part in int8", {"storage": "bf16_sr", "quantize": "int8"}),
    ("+ frozen part in nf4", {"quantize": "nf4"}),
    ("+ states on the host", {"gradient_release": "off", "optimizer_states": "host"}),
]
PEERS = ("Trainer, full SFT", "Trainer, region frozen", "PEFT LoRA r16", "PEFT QLoRA r16")


def rungs() -> dict[str, Settings | None]:
    """The settings of each row; None for the peers."""
    found: dict[str, Settings | None] = dict.fromkeys(PEERS)
    changes: dict[str, Any] = {}
    for name, more in LADDER:
        changes = {**changes, **more}
        found[name] = Settings(batch_size=ROWS, length=LENGTH, response_length=RESPONSE, **changes)
    return found


def layout(name: str) -> LlamaConfig:
    hidden, intermediate, layers, heads = LAYOUTS[name]
    return LlamaConfig(vocab_size=32000, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
                       num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=4096)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_model(config: LlamaConfig) -> LlamaForCausalLM:
    with device():
        former = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            return LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(former)


def rows(count: int) -> list[Encoded]:
    chosen = random.Random(0)
    return [Encoded([chosen.randrange(5, 32000) for _ in range(LENGTH)], LENGTH - RESPONSE) for _ in range(count)]


def train_peer(name: str, model: Any, steps: int) -> Watch:
    if "LoRA" in name:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear",
                                                 task_type="CAUSAL_LM"))
        model.enable_input_require_grads()
    elif "frozen" in name:
        Region.parse(REGION).apply(model)
    watch = Watch()
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), use_cpu=device().type == "cpu", per_device_train_batch_size=ROWS,
        max_steps=steps, gradient_checkpointing=True, logging_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True, dataloader_pin_memory=False)
    trainer = PaddedTrainer(model, arguments, train_dataset=rows(ROWS * steps),
                            data_collator=lambda items: collate(items, 0), callbacks=[watch])
    trainer.given = [list(range(start, start + ROWS)) for start in range(0, ROWS * steps, ROWS)]
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return watch


def train_ours(model: Any, settings: Settings, steps: int) -> Watch:
    watch, region = Watch(), Region.parse(REGION)
    cached = settings.prefix == "cached"
    memory = MemorySettings(prefix_cache="auto" if cached else "off", gradient_release=settings.gradient_release,
                            optimizer_states=settings.optimizer_states)
    # The last epoch, of as many steps as are counted, finds its prefix in the cache.
    train_region(
        model, region, rows(ROWS * steps), tempfile.mkdtemp(),
        {"per_device_train_batch_size": ROWS, "num_train_epochs": 2 if cached else 1, "logging_steps": 1,
         "gradient_checkpointing": settings.gradient_checkpointing},
        TrainOptions(storage=settings.storage, memory=memory), base=BaseInfo("", "", "bfloat16"), pad_token_id=0,
        callbacks=[watch])
    watch.seconds = watch.seconds[-steps:]
    return watch


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One row, in this process."""
    settings, config = rungs()[options.row], layout(options.layout)
    if torch.cuda.is_available() and options.cap:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.cap * 2**30 / total))
    method = settings.quantize if settings else "nf4" if "QLoRA" in options.row else "none"
    if method == "none":
        model = random_model(config)
    else:
        keep = Region.parse(REGION).modules if settings else ()
        model = load_quantized(options.checkpoint, method, keep, dtype=torch.bfloat16, device=device())
    with PeakMemory() as peak:
        watch = train_peer(options.row, model, options.steps) if settings is None else \
            train_ours(model, settings, options.steps)
    timed = watch.seconds[WARM:]
    found = {"row": options.row, "allocated": peak.bytes, "measure": peak.measure,
             "tokens_per_second": ROWS * LENGTH * len(timed) / sum(timed)}
    if torch.cuda.is_available():
        found["reserved"] = torch.cuda.max_memory_reserved()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=LAYOUTS, default="7B")
    parser.add_argument("--cap", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.set_verbosity_error()
    if options.row:
        print(json.dumps(measure(options)))
        return
    config = layout(options.layout)
    planner = Planner(fake_model(config), Region.parse(REGION))
    chosen = {name: settings for name, settings in rungs().items() if any(word in name for word in options.only)}
    table = []
    with tempfile.TemporaryDirectory() as checkpoint:
        if any("QLoRA" in name or (settings and settings.quantize != "none") for name, settings in chosen.items()):
            random_model(config).save_pretrained(checkpoint)  # bitsandbytes quantises while it loads
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        for name, settings in chosen.items():
            done = subprocess.run(
                [sys.executable, __file__, "--layout", options.layout, "--cap", str(options.cap), "--steps",
                 str(options.steps), "--checkpoint", checkpoint, "--row", name], capture_output=True, text=True)
            row = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else \
                {"row": name, "failure": (done.stderr.strip().splitlines() or ["no message"])[-1]}
            if settings is not None:
                plan = planner.plan(settings)
                row["planned"] = max(plan.peak, plan.filling)
            table.append(row)
            told = row.get("failure") or (f"{row['allocated'] / 2**30:8.2f} GiB {row['measure']}, "
                                          f"{row['tokens_per_second']:8.0f} tokens/s")
            planned = f", planned {row['planned'] / 2**30:.2f} GiB" if "planned" in row else ""
            print(f"{name:36}{told}{planned}", flush=True)
    if options.json:
        write_json(options.json, {"provenance": provenance(), "layout": options.layout, "cap_gib": options.cap,
                                  "region": REGION, "rows": ROWS, "length": LENGTH, "results": table})


if __name__ == "__main__":
    main()
