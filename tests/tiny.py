"""Tiny models and a tiny tokenizer, so that every test runs in a moment and without a network."""

from __future__ import annotations

import torch

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


def make_recurrent_model():
    """A random language model of one GRU, of which no list of layers and no roles are known."""
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

    class Config(PretrainedConfig):
        model_type, vocab_size = "of_its_own", 260

    class Model(PreTrainedModel):
        config_class = Config

        def __init__(self, config):
            super().__init__(config)
            self.embedding, self.gru = torch.nn.Embedding(260, 16), torch.nn.GRU(16, 16, batch_first=True)
            self.head = torch.nn.Linear(16, 260, bias=False)
            self.post_init()

        def get_input_embeddings(self):
            return self.embedding

        def get_output_embeddings(self):
            return self.head

        def forward(self, input_ids=None, attention_mask=None, **_):
            return CausalLMOutput(logits=self.head(self.gru(self.embedding(input_ids))[0]))

    torch.manual_seed(0)
    return Model(Config(pad_token_id=0, bos_token_id=1, eos_token_id=2)).eval()


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


def write_jsonl(path, rows):
    import json

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
