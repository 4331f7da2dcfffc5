"""What the tests of trainings with an anchor or a reference share: rows, a model that has left its base, one step."""

import random

import torch
from tiny import make_tiny_model

from cofitune_fast.data import Encoded
from cofitune_fast.regions import BaseInfo, Region
from cofitune_fast.training import MemorySettings, TrainOptions, train_region

REGIONS = {"region": Region.parse("ffn.up+ffn.down@50%-100%"), "all": Region.full()}


def task_data():
    generator = random.Random(0)
    return [Encoded([generator.randrange(4, 260) for _ in range(length)], length // 2) for length in (9, 12, 7, 10)]


def disturbed():
    """A model that has left its base, so that there is a divergence to train away."""
    model = make_tiny_model()
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(2))
    return model


def log_q(model, ids, places):
    """The model's log-probabilities at `places` of a row, float64 [places, vocabulary]."""
    return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)[places]


def response_places(row):
    return slice(row.response_start - 1, len(row.input_ids) - 1)


def nll(model, row):
    """The negative log-likelihoods of the row's response tokens."""
    targets = torch.tensor(row.input_ids[row.response_start :])
    return -log_q(model, row.input_ids, response_places(row)).gather(1, targets[:, None]).squeeze(1)


def merged_kl(log_one, log_other, ids):
    """KL(one || other) at each place, with all tokens but `ids` as one."""
    one, other = log_one.gather(1, ids), log_other.gather(1, ids)
    tails = [(1 - part.exp().sum(-1)).clamp_min(1e-30) for part in (one, other)]
    return (one.exp() * (one - other)).sum(-1) + tails[0] * (tails[0] / tails[1]).log()


def step_by_the_book(loss_of, region):
    """One step of torch's AdamW on loss_of(model), of a disturbed model; returns model and loss."""
    model = disturbed()
    params = [parameter for _, parameter in REGIONS[region].apply(model)]
    loss = loss_of(model)
    loss.backward()
    torch.optim.AdamW(params, lr=1e-2, betas=(0.9, 0.95), eps=1e-2, weight_decay=0.0).step()
    return model, loss.item()


def step_of_ours(folder, rows, region, *, packing="off", accumulation=1, **options):
    """The same step by `train_region`; eps does not blow up the last bits of small gradients."""
    model = disturbed()
    result = train_region(
        model, REGIONS[region], rows, folder,
        {"learning_rate": 1e-2, "per_device_train_batch_size": len(rows) // accumulation, "adam_epsilon": 1e-2,
         "seed": 3, "gradient_accumulation_steps": accumulation, "lr_scheduler_type": "constant", "warmup_steps": 0,
         "max_grad_norm": 0.0},
        TrainOptions(memory=MemorySettings(packing=packing), **options), base=BaseInfo.of(model, "tiny"),
        pad_token_id=0,
    )
    assert result.steps == 1
    return model, result


def assert_same_weights(ours, theirs):
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-4, atol=2e-6)
