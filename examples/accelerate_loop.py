"""Train a region with accelerate, in bfloat16: accelerate launch examples/accelerate_loop.py MODEL ROWS.jsonl OUTPUT.

Started again after a stop, it goes on behind the last finished epoch.
"""

import math
import sys
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

import cofitune_fast as cf
from cofitune_fast.data import collate

path, rows, output = sys.argv[1:]
accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2)
loaded = cf.load_model(path, device=accelerator.device)
base = cf.BaseInfo.of(loaded.model, path)
examples = cf.encode_examples(cf.read_examples(rows), loaded.tokenizer, max_length=512)
loader = torch.utils.data.DataLoader(
    examples, batch_size=4, shuffle=True, collate_fn=partial(collate, pad_token_id=loaded.tokenizer.pad_token_id))

region, epochs = cf.Region.parse("ffn@40%-75%"), 2
optimizer = cf.MaskedAdamW(cf.apply(loaded.model, region), lr=4e-4, max_grad_norm=None)  # clipped below
steps = math.ceil(len(loader) / 2)  # of an epoch, all processes together
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
model, optimizer, loader, scheduler = accelerator.prepare(loaded.model.train(), optimizer, loader, scheduler)

state = Path(output) / "state"
if state.exists():
    accelerator.load_state(state)
for epoch in range(scheduler.scheduler.last_epoch // steps, epochs):
    loader.set_epoch(epoch)
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    accelerator.print(f"epoch {epoch + 1}  loss {loss.item():.3f}  norm {norm.item():.3f}")
    accelerator.save_state(state)

if accelerator.is_main_process:
    cf.save_delta(accelerator.unwrap_model(model), region, Path(output) / "delta", base=base)
    print(f"saved {output}/delta")
