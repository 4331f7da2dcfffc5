"""Your own transformers Trainer with a region and the anchor: python examples/trainer.py MODEL ROWS.jsonl FOLDER."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

import cofitune_fast as cf


class MyTrainer(cf.DeltaCheckpoints, Trainer):  # checkpoints hold the region alone
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # yours, as it was
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss + 1e-4 * outputs.logits.logsumexp(-1).square().mean()
        return (loss, outputs) if return_outputs else loss


def main(location: str, file: str, folder: str, **settings) -> MyTrainer:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(location), AutoTokenizer.from_pretrained(location)
    rows = [{"input_ids": row.input_ids, "labels": [-100] * row.response_start + row.input_ids[row.response_start :]}
            for row in cf.encode_examples(cf.read_examples(file), tokenizer, max_length=512)]
    args = TrainingArguments(folder, **{"learning_rate": 4e-4, "per_device_train_batch_size": 8, "logging_steps": 10,
                                        "report_to": "none", **settings})
    callback = cf.CoFiTuneCallback("ffn@40%-75%", protect=cf.AnchorSettings())
    trainer = MyTrainer(model, args, train_dataset=rows, processing_class=tokenizer,
                        data_collator=DataCollatorForSeq2Seq(tokenizer), callbacks=[callback],
                        optimizer_cls_and_kwargs=cf.masked_adamw(args))
    trainer.train()
    print(f"{callback.frozen.tensors} frozen tensors ({callback.frozen.bytes:,} bytes) are unchanged; the delta is in "
          f"{callback.save_delta(f'{folder}/delta')}")
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
