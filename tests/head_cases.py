"""Tiny models of the families whose logits are more than a weight times the last states."""

from __future__ import annotations

import torch

SIZES = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT_SIZES = {"vocab_size": 260, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4,
             "bos_token_id": 1, "eos_token_id": 2}

# Family -> (class, what of its configuration acts on the logits, and the scale, soft cap and bias that this makes).
FAMILIES = {
    "llama": ("Llama", {}, (1.0, None, False)),
    "granite": ("Granite", {"logits_scaling": 6.0}, (1 / 6, None, False)),
    "cohere": ("Cohere", {"logit_scale": 0.3}, (0.3, None, False)),
    "cohere2": ("Cohere2", {"logit_scale": 0.0625}, (0.0625, None, False)),
    "falcon_h1": ("FalconH1", {"lm_head_multiplier": 0.2, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8,
                               "mamba_d_state": 8, "mamba_chunk_size": 8}, (0.2, None, False)),
    "gemma2": ("Gemma2", {"final_logit_softcapping": 0.5}, (1.0, 0.5, False)),
    "nanochat": ("NanoChat", {"final_logit_softcapping": 0.5}, (1.0, 0.5, False)),
    # divides the last states before its head
    "minicpm3": ("MiniCPM3", {"dim_model_base": 8, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8,
                              "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}, (1.0, None, False)),
    "phi": ("Phi", {}, (1.0, None, True)),
    "gptj": ("GPTJ", {}, (1.0, None, True)),
}


def make_model(family: str, dtype: torch.dtype = torch.float32):
    """A random model of 2 layers in `dtype`, with a head bias that is not 0 and weights that give uneven logits."""
    import transformers

    name, acting, _ = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**(GPT_SIZES if name == "GPTJ" else SIZES), **acting})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        head = model.get_output_embeddings()
        head.weight.mul_(10)
        if head.bias is not None:
            head.bias.normal_()
    return model.to(dtype)


def change_logits(model, change):
    """Put change(logits) in the place of the model's logits; returns the model."""
    def hook(_module, _inputs, output):
        output.logits = change(output.logits)
        return output

    model.register_forward_hook(hook)
    return model


def train_last_layer(model) -> list[torch.nn.Parameter]:
    """Freeze all but the last decoder layer; returns its trained parameters."""
    model.requires_grad_(False)
    layers = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    return list(layers[-1].requires_grad_(True).parameters())
