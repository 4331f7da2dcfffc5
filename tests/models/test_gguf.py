"""GGUF files: what transformers leaves out of them is read, or refused."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import transformers
from packaging import version
from tiny import make_tiny_model

from cofitune_fast.errors import CofituneError
from cofitune_fast.models import load_model

gguf = pytest.importorskip("gguf")

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192, "rope_theta": 500000.0}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COFITUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_llama(file, model, *, tensors=None, left_out=(), **more):
    """Write a Llama as llama.cpp does: rows of queries and keys in pairs, one token per byte. more: further keys."""
    config, writer = model.config, gguf.GGUFWriter(file, "llama")
    for name, value in {
        "block_count": config.num_hidden_layers, "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size, "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads, "context_length": config.max_position_embeddings,
        "rope_freq_base": config.rope_parameters["rope_theta"], "layer_norm_rms_eps": config.rms_norm_eps,
        "rope_dimension_count": config.head_dim, "vocab_size": config.vocab_size,
    }.items():
        getattr(writer, f"add_{name}")(value)
    for key, value in more.items():
        key = key.replace("__", ".")
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](key, value)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<pad>", "<eos>", "<bos>", "<eot>", *(f"<0x{byte:02X}>" for byte in range(256))])
    writer.add_token_scores([0.0] * 260)
    writer.add_token_types([gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.BYTE] * 256)
    for name, value in {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "eot_token_id": 3,
                        "add_space_prefix": False}.items():
        getattr(writer, f"add_{name}")(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if name in left_out:
            continue
        values, heads = parameter.detach(), {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if heads:
            values = values.view(heads, 2, -1, 32).transpose(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), values.numpy())
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, torch.tensor(values, dtype=torch.float32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def same_output(one, other, length=64):
    ids = torch.arange(4, 4 + length)[None]
    with torch.no_grad():
        torch.testing.assert_close(one(input_ids=ids).logits, other(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head, changes", [(8, {}), (64, {"factor": 32.0}), (64, {"high_freq_factor": 16.0})])
def test_the_scaling_of_llama_3_comes_back_from_its_factors(tmp_path, head, changes):
    rule = {**LLAMA3, **changes}
    model = make_tiny_model(rope_parameters=rule, head_dim=head, max_position_embeddings=16384)
    plain = rule["rope_theta"] ** (-torch.arange(0, head, 2) / head)  # llama.cpp's converter writes plain / scaled
    factors = (plain / model.model.rotary_emb.inv_freq).tolist()
    assert len({round(factor, 3) for factor in factors}) > 1
    file = write_llama(tmp_path / "m.gguf", model, tensors={"rope_freqs.weight": factors})
    loaded = load_model(file, dtype="float32").model
    assert loaded.config.rope_parameters == pytest.approx(rule)
    same_output(loaded, model)


@pytest.mark.parametrize("keys, expected", [
    ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
      "llama.rope.scaling.original_context_length": 128},
     {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}),
    ({"llama.rope.scaling.type": "none"}, {"rope_type": "default"}),
])
def test_scalings_by_key_are_read(tmp_path, keys, expected):
    rule = {**expected, "rope_theta": 10000.0}
    model = make_tiny_model(rope_parameters=rule)
    loaded = load_model(write_llama(tmp_path / "m.gguf", model, **keys), dtype="float32").model
    assert {key: loaded.config.rope_parameters[key] for key in rule} == rule
    same_output(loaded, model)


def test_long_and_short_factors_are_read(tmp_path):
    long, short = [1.0, 2.0, 3.0, 4.0], [1.0, 1.1, 1.2, 1.3]
    file = write_llama(tmp_path / "m.gguf", make_tiny_model(),
                       tensors={"rope_factors_long.weight": long, "rope_factors_short.weight": short},
                       **{"llama.rope.scaling.original_context_length": 128})
    rope = load_model(file).model.config.rope_parameters
    assert rope["rope_type"] == "longrope" and rope["original_max_position_embeddings"] == 128
    assert rope["long_factor"] == pytest.approx(long) and rope["short_factor"] == pytest.approx(short)


@pytest.mark.parametrize("keys, tensors, words", [
    ({}, {"rope_freqs.weight": [1.0, 3.0, 2.0, 8.0]}, r"rope_freqs.weight\) by a rule that is not Llama 3.1's"),
    ({"llama.rope.scaling.type": "ntk"}, {}, r"llama\.rope\.scaling\.type ntk, which transformers would leave out"),
    ({"llama.attention.scale": 0.5}, {}, r"says llama.attention.scale 0.5"),
    ({"llama.logit_scale": 0.0625}, {}, r"says llama.logit_scale 0.0625"),
    ({"llama.attention.sliding_window": 64}, {}, r"says llama.attention.sliding_window 64"),
    ({"llama.final_logit_softcapping": 30.0}, {}, r"says llama.final_logit_softcapping 30.0"),
    ({"llama.expert_count": 8}, {}, r"says llama.expert_count 8"),
    ({}, {"blk.0.attn_q.bias": [0.5] * 32}, r"holds 39,360 weights, and transformers' .* 39,328, so some would"),
    ({"split.count": 3}, {}, r"is one of the 3 parts of a split GGUF file: join them"),
])
def test_what_would_be_left_out_is_refused(tmp_path, cache, keys, tensors, words):
    file = write_llama(tmp_path / "m.gguf", make_tiny_model(), tensors=tensors, **keys)
    with pytest.raises(CofituneError, match=words):
        load_model(file)
    assert not list((cache / "gguf").glob("*"))


def test_weights_that_would_be_random_are_refused(tmp_path):
    file = write_llama(tmp_path / "m.gguf", make_tiny_model(), left_out={"model.layers.2.mlp.up_proj.weight"})
    with pytest.raises(CofituneError, match="so some would be random"):
        load_model(file)


def test_ends_of_a_turn_and_settings_of_the_tokenizer(tmp_path, cache):
    for begins, ends in ((True, False), (False, True)):
        if ends and version.parse(transformers.__version__) < version.parse("5.6"):
            with pytest.raises(CofituneError, match=r"no bos token, which the tokenizer of this release"):
                load_model(write_llama(tmp_path / "old.gguf", make_tiny_model(), **{
                    "tokenizer.ggml.add_bos_token": begins, "tokenizer.ggml.add_eos_token": ends}))
            continue
        loaded = load_model(write_llama(tmp_path / f"{begins}.gguf", make_tiny_model(), **{
            "tokenizer.ggml.add_bos_token": begins, "tokenizer.ggml.add_eos_token": ends}))
        assert loaded.model.generation_config.eos_token_id == [1, 3]
        ids = loaded.tokenizer("a")["input_ids"]
        assert (ids[0] == 2, ids[-1] == 1) == (begins, ends)
    for settings in (cache / "gguf").glob("*/tokenizer_config.json"):
        assert not {"is_local", "local_files_only"} & json.loads(settings.read_text()).keys()


def test_without_a_cache_the_model_is_converted_all_the_same(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COFITUNE_CACHE", str(tmp_path / "file"))
    model = make_tiny_model()
    file = write_llama(tmp_path / "m.gguf", model)
    with caplog.at_level(logging.WARNING):
        same_output(load_model(file, dtype="float32").model, model)
    assert "The converted model is not kept for later runs: " in caplog.text
    caplog.clear()
    same_output(load_model(file, dtype="float32").model, model)
    assert not caplog.text  # found again by this process
