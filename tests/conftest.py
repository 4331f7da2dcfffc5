"""Tiny models and a tiny tokenizer, so that every test runs in a moment and without a network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # on tensors this small a second thread only waits

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # heeded only if set before triton is first imported

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_model(family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **overrides):
    """A random 4-layer model of a family: hidden 32, FFN 48, 4 heads of 8 with 2 KV heads, 260 tokens."""
    import transformers

    prefix = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma",
              "gemma2": "Gemma2", "gemma3": "Gemma3Text"}[family]
    model_class = {"Gemma3Text": "Gemma3"}.get(prefix, prefix) + "ForCausalLM"
    config = getattr(transformers, f"{prefix}Config")(**{
        "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True, **overrides,
    })
    torch.manual_seed(seed)
    return getattr(transformers, model_class)(config).to(dtype).eval()


def make_tiny_tokenizer():
    """One token per UTF-8 byte (ids 4..259) plus <pad> 0, <s> 1, <|im_end|> 2 (end of sequence), <|im_start|> 3."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>"]
    vocabulary = {token: index for index, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    wrapped.chat_template = CHATML
    return wrapped


@pytest.fixture
def tiny_model():
    return make_tiny_model()


@pytest.fixture
def tiny_tokenizer():
    return make_tiny_tokenizer()


@pytest.fixture
def tiny_model_folder(tmp_path, tiny_model, tiny_tokenizer):
    folder = tmp_path / "tiny-base"
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def write_jsonl(path, rows):
    import json

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def tiny_run(tmp_path, tiny_model_folder):
    """The settings of a whole run on the tiny model: {"section.key": value}, with its data written to tmp_path."""
    def letters(start, count):
        return [{"prompt": f"say {chr(97 + i % 26)}", "completion": chr(65 + i % 26) * 2}
                for i in range(start, start + count)]

    for part, start, count in (("train", 0, 16), ("valid", 3, 4), ("test", 7, 4)):
        write_jsonl(tmp_path / f"{part}.jsonl", letters(start, count))
    for part in ("valid", "test"):
        for group in ("knowledge", "reasoning"):
            write_jsonl(tmp_path / part / group / f"{group}-{part}.jsonl", [
                {"query": f"{group} {i} is", "choices": ["yes", "no"], "gold": i % 2} for i in range(4)])
        write_jsonl(tmp_path / part / "instruction" / f"do-{part}.jsonl", [
            {"instruction": f"repeat {i}", "input": "", "output": f"{i}"} for i in range(4)])
    return {
        "model": str(tiny_model_folder),
        **{f"data.{part}": str(tmp_path / f"{part}.jsonl") for part in ("train", "valid", "test")},
        **{f"versatility.{part}": str(tmp_path / part) for part in ("valid", "test")},
        "importance.samples": 8,
        "training.learning_rate": 1e-2,
        "training.per_device_train_batch_size": 8,
        "output": str(tmp_path / "run"),
    }
