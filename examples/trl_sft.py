"""TRL's SFTTrainer trains a region, and an anchor holds the model to its base."""

import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

import cofitune_fast as cf


class RegionSFTTrainer(cf.DeltaCheckpoints, SFTTrainer):
    """Its checkpoints hold the region and no pickle."""


callback = cf.CoFiTuneCallback("ffn@40%-75%", cf.AnchorSettings())
args = SFTConfig("runs/trl-sft", learning_rate=4e-4, num_train_epochs=2, use_cpu=not torch.cuda.is_available())
trainer = RegionSFTTrainer(
    "./my-chat-model", args, callbacks=[callback],
    train_dataset=load_dataset("json", data_files="data/train.jsonl", split="train"),
    optimizer_cls_and_kwargs=cf.masked_adamw(args),
)
trainer.train()
print(callback.save_delta("runs/trl-sft/delta"))
