"""Tiny random models of the causal families of transformers: one table, which drives tests and the families' page.

`FAMILIES` names the families that the installed transformers has, `tiny_family` makes a model of one, and
`FAMILY_TABLE[name].tags` says what is special about it:

- `experts`: mixtures of experts · `mla`: latent attention, with low-rank queries, keys and values
- `linear`: linear attention, Mamba or convolution in some layers · `recurrent`: no attention in any layer
- `hybrid`: layers of different kinds, or two mixers in one layer · `sizes`: heads of different sizes in one model
- `shared`: a tensor, or keys and values, used by more than one layer · `looped`: layers that run more than once
- `wrapper`: a text model inside one with a vision tower

A name is a model type. After a colon stands a variant, where a model type has layers of more than one structure.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field
from functools import cache

import torch

LAYERS, HIDDEN, VOCABULARY = 4, 64, 260  # the vocabulary of tiny.make_tiny_tokenizer

# Values for every family whose config knows the name. A family's own values go before these.
COMMON = {
    "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 512,
    "hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 64,
    # experts: 4, of which a token takes 2, and one that is shared
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_topk": 2,
    "n_shared_experts": 1, "num_shared_experts": 1, "moe_num_shared_experts": 1,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 40, "shared_intermediate_size": 40,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_dense_layers": 1,
    # latent attention, and the indexers that choose which keys it sees
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 8, "v_head_dim": 16,
    "index_head_dim": 32, "index_n_heads": 2, "index_topk": 8,
    # linear attention, Mamba and convolution
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4, "linear_head_dim": 16, "linear_num_heads": 4,
    "mamba_n_heads": 8, "mamba_num_heads": 8, "mamba_d_head": 16, "mamba_head_dim": 16, "mamba_d_state": 8,
    "mamba_d_ssm": 128, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 8, "mamba_chunk_size": 16,
    "ssm_state_size": 8, "state_size": 8, "time_step_rank": 8, "chunk_size": 16, "n_groups": 1, "conv_kernel": 4,
    "use_mambapy": False, "use_mamba_kernels": False,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    tags: frozenset[str] = frozenset()
    values: dict = field(default_factory=dict)  # of its config, where they differ from COMMON
    text: str = ""  # a wrapper's text family
    since: tuple[int, int] = (5, 5)  # the transformers that first has these values, if later than the model type


def _family(tags: str = "", since: tuple[int, int] = (5, 5), **values) -> Family:
    return Family(frozenset(tags.split()), values, since=since)


def _wrapper(text: str, vision: dict, tags: str = "", **values) -> Family:
    values["vision_config"] = {"hidden_size": 32, **vision}
    return Family(frozenset(["wrapper", *tags.split()]), values, text)


WINDOW_FULL = ["sliding_attention", "full_attention"] * 2
LINEAR_FULL = ["linear_attention", "full_attention"] * 2
CONV_FULL = ["conv", "full_attention"] * 2
DENSE_SPARSE = ["dense", "sparse", "sparse", "sparse"]
# token ids that only bytes outside ASCII have
IMAGE_TOKENS = {"image_token_id": 259, "video_token_id": 258, "vision_start_token_id": 257, "vision_end_token_id": 256}
# three axes of rotary positions: time, height, width
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
BLOCKS = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 28, "patch_size": 14}
QWEN_BLOCKS = {"depth": 2, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": HIDDEN, "patch_size": 14}

FAMILY_TABLE = {
    # attention and FFN as in Llama
    "arcee": _family(), "bitnet": _family(), "cohere": _family(), "diffllama": _family(), "ernie4_5": _family(),
    "gemma": _family(), "glm": _family(), "glm4": _family(), "granite": _family(logits_scaling=8.0),
    "llama:biases": _family(attention_bias=True, mlp_bias=True),
    "helium": _family(), "hunyuan_v1_dense": _family(), "hyperclovax": _family(), "internlm3": _family(),
    "iquestcoder": _family(), "jais2": _family(), "llama": _family(), "ministral3": _family(), "mistral": _family(),
    "nanochat": _family(), "nemotron": _family(), "olmo": _family(), "olmo2": _family(), "phi": _family(),
    "phi3": _family(), "qwen2": _family(), "qwen3": _family(), "seed_oss": _family(), "apertus": _family(),
    "stablelm": _family(), "starcoder2": _family(), "doge": _family(),
    "youtu": _family("mla", pad_token_id=None),  # loading puts a pad token's embedding at zero
    "minicpm3": _family("mla"),
    # windows in some layers
    "cohere2": _family(layer_types=WINDOW_FULL), "cwm": _family(layer_types=WINDOW_FULL),
    "exaone4": _family(layer_types=WINDOW_FULL), "gemma2": _family(layer_types=WINDOW_FULL),
    "gemma3_text": _family(layer_types=WINDOW_FULL), "granite_swa": _family(layer_types=WINDOW_FULL),
    "ministral": _family(layer_types=WINDOW_FULL), "olmo3": _family(layer_types=WINDOW_FULL),
    "smollm3": _family(no_rope_layers=[1, 0, 1, 0]), "vaultgemma": _family(layer_types=WINDOW_FULL),
    "modernbert-decoder": _family(layer_types=WINDOW_FULL),
    "gemma3n_text": _family(
        "shared", layer_types=WINDOW_FULL, num_kv_shared_layers=2, intermediate_size=[96] * 4,
        activation_sparsity_pattern=[0.0] * 4, laurel_rank=8, hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCABULARY),
    "gemma4_text": _family(
        "shared sizes", layer_types=WINDOW_FULL, num_kv_shared_layers=2, global_head_dim=32,
        hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCABULARY),
    "gemma4_text:experts": _family(  # a dense FFN and experts in each layer; values are keys where all is seen
        "experts sizes", layer_types=WINDOW_FULL, global_head_dim=32, num_global_key_value_heads=1,
        attention_k_eq_v=True, hidden_size_per_layer_input=0, enable_moe_block=True, top_k_experts=2),
    "gemma4_unified_text": _family("sizes", layer_types=WINDOW_FULL, global_head_dim=32),
    # older decoders: other names, fused or transposed matrices, learned positions
    "biogpt": _family(), "bloom": _family(), "codegen": _family(rotary_dim=8), "ctrl": _family(dff=96),
    "falcon": _family(new_decoder_architecture=True, num_kv_heads=2, ffn_hidden_size=96),
    "falcon:one-key": _family(multi_query=True, ffn_hidden_size=96),
    "falcon:heads": _family(multi_query=False, alibi=True, parallel_attn=False, bias=True, ffn_hidden_size=96),
    "gpt2": _family(n_inner=96), "gpt_bigcode": _family(n_inner=96),
    "gpt_bigcode:heads": _family(multi_query=False, n_inner=96),
    "gpt_neo": _family(attention_types=[[["global", "local"], 2]], window_size=64),
    "gpt_neox": _family(), "gpt_neox_japanese": _family(), "gptj": _family(rotary_dim=8, n_inner=96),
    "mpt": _family(), "openai-gpt": _family(), "opt": _family(ffn_dim=96, word_embed_proj_dim=HIDDEN),
    "persimmon": _family(), "xglm": _family(ffn_dim=96),
    # experts
    "afmoe": _family("experts", layer_types=WINDOW_FULL), "aria_text": _family("experts"),
    "cohere2_moe": _family("experts", layer_types=WINDOW_FULL, mlp_layer_types=DENSE_SPARSE),
    "dots1": _family("experts"), "ernie4_5_moe": _family("experts", moe_k=2, moe_layer_end_index=3),
    "exaone_moe": _family("experts", layer_types=WINDOW_FULL, mlp_layer_types=DENSE_SPARSE),
    "flex_olmo": _family("experts"), "flint": _family("experts", layer_types=WINDOW_FULL, mlp_only_layers=[0]),
    "glm4_moe": _family("experts"), "gpt_oss": _family("experts", layer_types=WINDOW_FULL),
    "granitemoe": _family("experts", logits_scaling=8.0), "granitemoeshared": _family("experts", logits_scaling=8.0),
    "granitemoe_swa": _family("experts", layer_types=WINDOW_FULL),
    "hunyuan_v1_moe": _family("experts"), "hy_v3": _family("experts", mlp_layer_types=DENSE_SPARSE),
    "inkling_text": _family(
        "experts linear", layer_types=["hybrid_sliding", "hybrid"] * 2, mlp_layer_types=DENSE_SPARSE, rel_extent=64,
        swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=16),
    "inkling2_text": _family(
        "experts linear", layer_types=["hybrid_sliding", "hybrid"] * 2, rel_extent=64, swa_num_attention_heads=4,
        swa_num_key_value_heads=2, swa_head_dim=16, n_layers_per_attn_res_block=2, unpadded_vocab_size=VOCABULARY),
    "jetmoe": _family("experts"), "kolibri1": _family("experts", layer_types=WINDOW_FULL),
    "laguna": _family("experts", mlp_layer_types=DENSE_SPARSE, num_attention_heads_per_layer=[4] * 4),
    "llama4_text": _family("experts", interleave_moe_layer_step=2, intermediate_size_mlp=96, attention_chunk_size=64,
                           no_rope_layers=[1, 1, 1, 0]),
    "mellum": _family("experts", mlp_layer_types=DENSE_SPARSE),
    "mimo_v2_flash": _family("experts sizes", layer_types=WINDOW_FULL, mlp_layer_types=DENSE_SPARSE),
    "minimax_m2": _family("experts"),
    "minimax_m3_vl_text": _family(
        "experts", mlp_layer_types=DENSE_SPARSE, dense_intermediate_size=96, rotary_dim=8),
    "mixtral": _family("experts"), "olmoe": _family("experts"), "phimoe": _family("experts"),
    "qwen2_moe": _family("experts", mlp_only_layers=[0]), "qwen3_moe": _family("experts", mlp_only_layers=[0]),
    "solar_open": _family("experts"), "zaya": _family("experts linear", num_experts_per_tok=1, router_hidden_size=16),
    # experts and latent attention
    "axk1": _family("experts mla", mlp_layer_types=DENSE_SPARSE),
    "axk2": _family("experts mla", mlp_layer_types=DENSE_SPARSE, gated_norm_rank=8),
    "deepseek_v2": _family("experts mla", mlp_layer_types=DENSE_SPARSE),
    "deepseek_v2:whole-query": _family("experts mla", mlp_layer_types=DENSE_SPARSE, q_lora_rank=None),
    "deepseek_v3": _family("experts mla"), "deepseek_v32": _family("experts mla", mlp_layer_types=DENSE_SPARSE),
    "deepseek_v4": _family(
        "experts mla hybrid", num_key_value_heads=1, mlp_layer_types=["hash_moe", "moe", "moe", "moe"],
        layer_types=["heavily_compressed_attention", "compressed_sparse_attention"] * 2, o_groups=2, o_lora_rank=8,
        qk_rope_head_dim=8, hc_mult=2,
        compress_rates={"heavily_compressed_attention": 8, "compressed_sparse_attention": 4}),
    "dots3_note_text": _family(
        "experts mla hybrid sizes", layer_types=["indexed_attention", "sliding_attention"] * 2,
        mlp_layer_types=DENSE_SPARSE, head_dim=24, shared_experts_intermediate_size=40, swa_num_attention_heads=2,
        swa_num_key_value_heads=2, swa_q_lora_rank=16, swa_kv_lora_rank=24, swa_head_dim=24, swa_qk_nope_head_dim=8,
        swa_v_head_dim=16),
    "glm4_moe_lite": _family("experts mla", mlp_layer_types=DENSE_SPARSE),
    "glm_moe_dsa": _family("experts mla", mlp_layer_types=DENSE_SPARSE),
    "hy_v4": _family("experts mla shared", mlp_layer_types=DENSE_SPARSE, hc_mult=2,
                     indexer_types=["full", "shared", "full", "shared"]),
    "longcat_flash": _family("experts mla hybrid", num_layers=2, ffn_hidden_size=96, expert_ffn_hidden_size=32,
                             zero_expert_num=2),
    # linear attention, Mamba or convolution in some layers, attention in the others
    "bailing_hybrid": _family("experts mla linear hybrid", layer_types=LINEAR_FULL, mlp_layer_types=DENSE_SPARSE),
    "bamba": _family("linear hybrid", attn_layer_indices=[1, 3]),
    "falcon_h1": _family("linear hybrid"),
    "granitemoehybrid": _family("experts linear hybrid", layer_types=["mamba", "attention"] * 2, logits_scaling=8.0),
    "granitemoehybrid:dense": _family(
        "linear hybrid", layer_types=["mamba", "attention"] * 2, num_local_experts=0, num_experts_per_tok=0),
    "jamba": _family("experts linear hybrid", attn_layer_period=4, attn_layer_offset=2),
    "kimi_linear": _family("experts mla linear hybrid", layer_types=LINEAR_FULL, mlp_layer_types=DENSE_SPARSE),
    "lfm2": _family("linear hybrid", layer_types=CONV_FULL, block_multiple_of=32),
    "lfm2_moe": _family("experts linear hybrid", layer_types=CONV_FULL),
    "lfm3": _family("linear hybrid", layer_types=["conv", "full_attention", "conv", "sliding_attention"]),
    "minimax": _family("experts linear hybrid", layer_types=LINEAR_FULL, block_size=16),
    "nemotron_h": _family(
        "experts linear hybrid", hybrid_override_pattern="ME*M", moe_shared_expert_intermediate_size=40),
    "nemotron_h:dense": _family("linear hybrid", since=(5, 6), hybrid_override_pattern="M-*-"),
    "olmo_hybrid": _family("linear hybrid", layer_types=LINEAR_FULL),
    "qwen3_5_text": _family("linear hybrid", layer_types=LINEAR_FULL),
    "qwen3_5_moe_text": _family("experts linear hybrid", layer_types=LINEAR_FULL),
    "qwen3_next": _family("experts linear hybrid", layer_types=LINEAR_FULL, mlp_only_layers=[0]),
    "qwen4_exp_text": _family(
        "experts linear hybrid", layer_types=LINEAR_FULL, hc_count=2, hc_lowrank=8, ple_layer_ids=[3],
        ple_embed_dim=HIDDEN, ngram_size=2, heads_per_ngram=2, ngram_vocab_size_base=64, split_ngram_parts=2,
        make_ngram_vocab_size_divisible_by=8, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=16,
        indexer_budget=16, indexer_compress_ratio=4),
    "recurrent_gemma": _family("linear hybrid", lru_width=HIDDEN, attention_window_size=64,
                               block_types=["recurrent", "attention"]),
    "zamba": _family("linear hybrid shared", layers_block_type=["mamba", "hybrid"] * 2, attention_hidden_size=128,
                     attention_head_dim=32, num_key_value_heads=4),
    "zamba2": _family("linear hybrid shared", layers_block_type=["mamba", "hybrid"] * 2, n_mamba_heads=8,
                      mamba_headdim=16, adapter_rank=8, num_key_value_heads=4),
    # no attention, and layers that run more than once
    "falcon_mamba": _family("linear recurrent"), "mamba": _family("linear recurrent"),
    "mamba2": _family("linear recurrent", num_heads=8),
    "rwkv": _family("linear recurrent", attention_hidden_size=HIDDEN),
    "xlstm": _family("linear recurrent", num_heads=4, chunkwise_kernel="chunkwise--native_autograd"),
    "hrm_text": _family("looped", num_hidden_layers=2),
    # wrappers
    "gemma3": _wrapper("gemma3_text", BLOCKS, mm_tokens_per_image=4, image_token_index=259, boi_token_index=258,
                       eoi_token_index=257),
    "gemma4": _wrapper("gemma4_text", {**BLOCKS, "position_embedding_size": 64}, "shared sizes",
                       image_token_id=259, video_token_id=258, audio_token_id=257),
    "idefics3": _wrapper("llama", BLOCKS, image_token_id=259, scale_factor=1),
    "internvl": _wrapper("qwen2", BLOCKS, image_token_id=259),
    "lfm2_vl": _wrapper("lfm2", BLOCKS, "linear hybrid", image_token_id=259, projector_hidden_size=64),
    "llama4": _wrapper(
        "llama4_text", {**BLOCKS, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
                        "pixel_shuffle_ratio": 0.5}, "experts", image_token_index=259),
    "llava": _wrapper("llama", BLOCKS, image_token_index=259, image_seq_length=4),
    "mistral3": _wrapper("mistral", {**BLOCKS, "head_dim": 16}, image_token_index=259),
    "paligemma": _wrapper("gemma", BLOCKS, image_token_index=259, projection_dim=HIDDEN),
    "qwen2_5_vl": _wrapper("qwen2_5_vl_text", {**QWEN_BLOCKS, "fullatt_block_indexes": [1]}, **IMAGE_TOKENS),
    "qwen2_vl": _wrapper("qwen2_vl_text", {**QWEN_BLOCKS, "hidden_size": HIDDEN, "embed_dim": 32, "mlp_ratio": 1},
                         **IMAGE_TOKENS),
    "qwen3_5": _wrapper("qwen3_5_text", QWEN_BLOCKS, "linear hybrid", **IMAGE_TOKENS),
    "qwen3_5_moe": _wrapper("qwen3_5_moe_text", QWEN_BLOCKS, "experts linear hybrid", **IMAGE_TOKENS),
    "qwen3_vl": _wrapper("qwen3_vl_text", {**QWEN_BLOCKS, "deepstack_visual_indexes": [0]}, **IMAGE_TOKENS),
    "qwen3_vl_moe": _wrapper("qwen3_vl_moe_text", {**QWEN_BLOCKS, "deepstack_visual_indexes": [0]}, "experts",
                             **IMAGE_TOKENS),
}  # fmt: skip

TEXT_PARTS = {  # text families that only a wrapper has
    "qwen2_vl_text": _family(**MROPE), "qwen2_5_vl_text": _family(**MROPE), "qwen3_vl_text": _family(**MROPE),
    "qwen3_vl_moe_text": _family("experts", mlp_only_layers=[0], **MROPE),
}


def model_type(name: str) -> str:
    return name.partition(":")[0]


def _installed() -> list[str]:
    from transformers import CONFIG_MAPPING, __version__

    release = tuple(int(part) for part in __version__.split(".")[:2])
    return sorted(name for name, family in FAMILY_TABLE.items()
                  if model_type(name) in CONFIG_MAPPING and family.since <= release)


FAMILIES = _installed()  # those that the installed transformers has


_STRUCTURES = {  # one family for each structure
    "phi3", "gpt2", "gpt_neox", "falcon", "opt", "codegen", "gpt_bigcode:heads", "starcoder2", "glm4", "jetmoe",
    "mixtral", "gpt_oss", "llama4_text", "deepseek_v3", "deepseek_v4", "axk2", "qwen3_5_text", "qwen3_next", "qwen3_5",
    "nemotron_h", "lfm2_moe", "granitemoehybrid", "falcon_h1", "kimi_linear", "minimax", "gemma3n_text", "gemma4_text",
    "gemma4", "modernbert-decoder", "longcat_flash", "hrm_text", "mamba", "recurrent_gemma", "rwkv", "xlstm", "zamba2",
    "zaya", "ctrl",
}
CHOSEN = FAMILIES if os.environ.get("COFITUNE_TEST") == "full" else [name for name in FAMILIES if name in _STRUCTURES]
"""Families that a test of every structure takes: all of them in `make test-full`."""


def families_with(*tags: str) -> list[str]:
    """Names of the installed families that have all of the tags."""
    return [name for name in FAMILIES if FAMILY_TABLE[name].tags.issuperset(tags)]


def tiny_config(name: str, **overrides):
    """The config of a family's tiny model. Overrides are of its text part if it is a wrapper."""
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type(name)]
    family = FAMILY_TABLE.get(name) or TEXT_PARTS[name]
    if family.text:
        text = tiny_config(family.text, **overrides).to_dict()
        return config_class(**{**family.values, "text_config": text})
    default = config_class()
    aliases = getattr(config_class, "attribute_map", {})
    known = set(default.to_dict()) | set(getattr(config_class, "__dataclass_fields__", ()))
    # An alias gives way to the name it stands for: two families keep two sizes that others have as one.
    common = {aliases[key]: value for key, value in COMMON.items() if key in aliases}
    common |= {key: value for key, value in COMMON.items() if key in known}
    if "mla" in family.tags:
        common["num_key_value_heads"] = COMMON["num_attention_heads"]  # latent attention makes keys for every head
    own = {**family.values, **overrides}
    return config_class(**{**common, **{aliases.get(key, key): value for key, value in own.items()}})


@cache
def _made(name: str, dtype: torch.dtype, seed: int) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    auto = AutoModelForImageTextToText if "wrapper" in FAMILY_TABLE[name].tags else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = auto.from_config(tiny_config(name), dtype=dtype)
        # No norm stays at one, no bias and no router at zero: a test that mixes them up can fail.
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
        for path, buffer in model.named_buffers():
            if path.endswith(("e_score_correction_bias", "layer_scalar")):
                buffer.add_(torch.randn(buffer.shape) * 0.05)
            elif path.endswith("tid2eid"):  # expert ids by token id
                buffer.random_(0, COMMON["n_routed_experts"])
    return model.eval()


def tiny_family(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.nn.Module:
    """A random model of a family: 4 layers, hidden size 64, 260 tokens. Each call returns a model of its own.

    Train it with `use_cache=False`, as training does: RWKV writes to its cache in place.
    """
    return copy.deepcopy(_made(name, dtype, seed))
