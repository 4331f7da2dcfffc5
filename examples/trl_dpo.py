"""TRL's DPOTrainer trains a region; the reference shares all other weights with the model."""

import torch
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer

import cofitune_fast as cf

region = "ffn@40%-75%"
loaded = cf.load_model("./my-chat-model")
callback = cf.CoFiTuneCallback(region)
trainer = DPOTrainer(
    loaded.model, cf.reference_model(loaded.model, region), processing_class=loaded.tokenizer, callbacks=[callback],
    args=DPOConfig("runs/trl-dpo", learning_rate=1e-5, use_cpu=not torch.cuda.is_available()),
    train_dataset=load_dataset("json", data_files="data/preferences.jsonl", split="train"),
)
trainer.train()
print(callback.save_delta("runs/trl-dpo/delta"))
