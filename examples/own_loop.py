"""Train a region in a loop of your own: python examples/own_loop.py MODEL ROWS.jsonl OUTPUT."""

import sys

import torch

import cofitune_fast as cf
from cofitune_fast.data import batches

path, rows, output = sys.argv[1:]
loaded = cf.load_model(path)
model, tokenizer = loaded.model.train(), loaded.tokenizer
base = cf.BaseInfo.of(model, path)
examples = cf.encode_examples(cf.read_examples(rows), tokenizer, max_length=512)
epochs = [list(batches(examples, tokenizer.pad_token_id, batch_size=8, seed=epoch)) for epoch in range(2)]
steps = sum(map(len, epochs))

region = cf.Region.parse("ffn@40%-75%")
params = cf.apply(model, region)  # freezes all else
optimizer = cf.MaskedAdamW(params, lr=4e-4, max_grad_norm=1.0)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-4, total_steps=steps)

print(region.describe(model))
for batch in (batch for epoch in epochs for _, batch in epoch):
    loss = model(**{key: value.to(model.device) for key, value in batch.items()}).loss
    loss.backward()
    optimizer.step()
    print(f"loss {loss.item():.3f}  norm {optimizer.last_grad_norm.item():.3f}  lr {scheduler.get_last_lr()[0]:.2e}")
    scheduler.step()
    optimizer.zero_grad()

cf.save_delta(model, region, output, base=base)
print(f"saved {output}")
