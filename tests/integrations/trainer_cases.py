"""What the tests of parts for other Trainers share: rows, a collator, an anchor, a Trainer of a user's own."""

import random

import torch
from anchor.anchor_cases import log_q, merged_kl, response_places
from tiny import make_tiny_model, make_tiny_tokenizer
from transformers import Trainer, TrainingArguments

import cofitune_fast as cf

REGION = "ffn.up+ffn.down@50%-100%"
SETTINGS = cf.AnchorSettings(weight=200.0, rows=2, texts=5, tokens=6, top_k=8, seed=3)


def rows(count=12, seed=0):
    """Rows of different lengths, of which the second half is learnt."""
    generator = random.Random(seed)
    made = []
    for _ in range(count):
        ids = [generator.randrange(4, 260) for _ in range(generator.randrange(6, 12))]
        made.append({"input_ids": ids, "labels": [-100] * (len(ids) // 2) + ids[len(ids) // 2 :]})
    return made


def collate(batch):
    longest = max(len(row["input_ids"]) for row in batch)
    fill = {"input_ids": 0, "labels": -100}
    made = {name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in batch])
            for name, value in fill.items()}
    return {**made, "attention_mask": torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(
        row["input_ids"])) for row in batch])}


def disturbed(**overrides):
    """A model that has left the base of `protected`, so that there is a divergence to train away."""
    model = make_tiny_model(**overrides)
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(2))
    return model


def protected(model, folder):
    """The protection of a tiny base, for a model that is no longer it."""
    base = make_tiny_model()
    return cf.protect(model, anchor=cf.open_anchor(base, make_tiny_tokenizer(), SETTINGS, folder=folder))


def mean_kl(model, anchor, call):
    """Mean KL per token of the texts of a call of `protect`, float64, computed by the book."""
    order = random.Random(f"{SETTINGS.seed} anchor").sample(range(len(anchor.rows)), len(anchor.rows))
    texts = [anchor.rows[order[(call * SETTINGS.rows + place) % len(order)]] for place in range(SETTINGS.rows)]
    losses = []
    for row in texts:
        top = log_q(model, row.input_ids, response_places(row)).gather(1, row.ids.long())
        losses.append(merged_kl(row.log_p.double(), top, torch.arange(row.ids.shape[1]).expand(len(row.ids), -1)))
    return torch.cat(losses).mean()


def arguments(folder, **values):
    return TrainingArguments(str(folder), **{
        "use_cpu": True, "max_steps": 4, "learning_rate": 1e-2, "save_strategy": "no", "disable_tqdm": True,
        "per_device_train_batch_size": 3, "report_to": "none", "logging_steps": 1, **values})


class Keeps:
    """What a user's Trainer has of its own: a collator, and a loss that keeps what it was given."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, data_collator=collate, **kwargs)
        self.seen = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training:
            self.seen.append((self.state.global_step, {name: tensor.clone() for name, tensor in inputs.items()}))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class Own(Keeps, Trainer):
    pass
