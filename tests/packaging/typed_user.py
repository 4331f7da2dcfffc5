"""A user's code, for a type checker only (`make types`): the public face must say its types under mypy --strict."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

import cofitune_fast as cf


def by_hand(folder: Path, data: Path) -> float:
    loaded = cf.load_model(folder)
    model, tokenizer = loaded.model, loaded.tokenizer
    base = cf.BaseInfo.of(model, folder)
    rows = cf.encode_examples(cf.read_examples(data), tokenizer, max_length=512)
    region = cf.Region.parse("ffn@40%-75%")
    anchor = cf.open_anchor(model, tokenizer, cf.AnchorSettings(weight=1.0), base.fingerprint)
    result = cf.train_region(model, region, rows, folder / "run", {"num_train_epochs": 2},
                             cf.TrainOptions(anchor=anchor), base=base, pad_token_id=0)
    cf.save_delta(model, region, folder / "delta", base=base)
    cf.merge(folder, folder / "delta", folder / "merged")
    return result.loss


def own_loop(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    parameters: list[tuple[str, torch.nn.Parameter]] = cf.Region.parse("attn.v@0-3").apply(model)
    optimizer = cf.MaskedAdamW(parameters, lr=4e-4, betas=(0.9, 0.95), weight_decay=0.1, max_grad_norm=1.0,
                               pull=cf.Pull("l2", 10.0))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-4, total_steps=len(batches))
    for batch in batches:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    kl: torch.Tensor = cf.ops.linear_kl(torch.randn(4, 8), torch.randn(4, 8), torch.randn(50, 8))
    return kl


def protected_loop(folder: Path, batches: list[dict[str, torch.Tensor]]) -> float:
    loaded = cf.load_model(folder)
    protected = cf.protect(loaded.model, loaded.tokenizer, cf.AnchorSettings(rows=1))
    optimizer = cf.MaskedAdamW(cf.apply(loaded.model, "ffn@40%-75%"))
    for batch in batches:
        loss = loaded.model(**batch).loss + protected()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    reference: torch.nn.Module = cf.reference_model(loaded.model, "ffn@40%-75%")
    return float(protected.kl or sum(p.numel() for p in reference.parameters()))


def own_trainer(folder: Path, rows: list[dict[str, list[int]]]) -> Path:
    class MyTrainer(cf.DeltaCheckpoints, cf.ChunkedLoss, Trainer):
        pass

    args = TrainingArguments(str(folder / "run"))
    callback = cf.CoFiTuneCallback("ffn@40%-75%", cf.AnchorSettings())
    MyTrainer(cf.load_model(folder).model, args, train_dataset=rows, callbacks=[callback],
              optimizer_cls_and_kwargs=cf.masked_adamw(args)).train()
    delta = callback.save_delta(folder / "delta")
    print(cf.export_peft(folder, delta, folder / "adapter").sentence())
    cf.push_to_hub(delta, "me/delta")
    return delta


def refused(text: str) -> str:
    try:
        return str(cf.Region.parse(text))
    except cf.CofituneError as error:
        return str(error)
