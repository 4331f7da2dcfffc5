"""Loading: what works, and one sentence for what does not."""

import pytest
import torch
from tiny import make_tiny_model

from cofitune_fast.errors import CofituneError
from cofitune_fast.models import load_model
from cofitune_fast.models.fingerprint import fingerprint


def test_a_folder_loads_with_its_bytes_and_a_pad_token(tiny_model, tiny_model_folder):
    loaded = load_model(tiny_model_folder)
    assert fingerprint(loaded.model) == fingerprint(tiny_model)
    assert loaded.tokenizer.pad_token == "<pad>" and not loaded.model.training
    assert load_model(tiny_model_folder, dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(CofituneError, match=r"is not a model folder: it has no config.json"):
        load_model(tmp_path)


@pytest.mark.parametrize(("device", "gpus", "words"), [
    ("gpu", 0, "model.device is 'gpu', which is no device; choose cpu, cuda, cuda:0 or mps"),
    ("cuda", 0, "model.device is cuda, but torch sees no GPU here"),
    ("cuda:7", 2, "there are 2 GPUs here, cuda:0 to cuda:1"),
    ("mps", 0, "model.device is mps, but torch has no MPS here"),
])
def test_a_device_that_is_not_there_is_told_before_anything_is_read(device, gpus, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(CofituneError, match=words):
        load_model("nowhere", device=device)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(CofituneError, match=r"No model at .*nowhere: the folder does not exist"):
        load_model(tmp_path / "nowhere")


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CofituneError, match="is a file, not a model folder"):
        load_model(tmp_path / "notes.txt")


def test_a_folder_with_broken_weights(tiny_model_folder):
    weights = tiny_model_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CofituneError, match=r"model.safetensors cannot be read \(its header is cut off\); fetch or"):
        load_model(tiny_model_folder)


def write_gguf(file, model):
    """Write a Gemma 3 in full precision, with one token per byte, as llama.cpp does: its norms are stored plus 1."""
    import gguf

    config, writer = model.config, gguf.GGUFWriter(file, "gemma3")
    for name in ("block_count", "embedding_length", "feed_forward_length", "head_count", "head_count_kv", "key_length",
                 "value_length", "context_length", "sliding_window", "rope_freq_base", "layer_norm_rms_eps"):
        getattr(writer, f"add_{name}")({
            "block_count": config.num_hidden_layers, "embedding_length": config.hidden_size,
            "feed_forward_length": config.intermediate_size, "head_count": config.num_attention_heads,
            "head_count_kv": config.num_key_value_heads, "context_length": config.max_position_embeddings,
            "sliding_window": config.sliding_window, "rope_freq_base": 1e6, "layer_norm_rms_eps": config.rms_norm_eps,
        }.get(name, config.head_dim))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<pad>", "<eos>", "<bos>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))])
    writer.add_token_scores([0.0] * 260)
    writer.add_token_types([gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.BYTE] * 256)
    for name, value in {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "unk_token_id": 3,
                        "add_bos_token": True, "add_space_prefix": False}.items():
        getattr(writer, f"add_{name}")(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    for name, parameter in model.named_parameters():  # the tied head is not among them
        values = parameter.detach() + 1 if "norm" in name else parameter.detach()
        writer.add_tensor(names.get_name(name, (".weight",)), values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_keeps_weights_config_and_tokens(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setenv("COFITUNE_CACHE", str(tmp_path / "cache"))
    model = make_tiny_model("gemma3", num_hidden_layers=6, sliding_window=16, bos_token_id=2, eos_token_id=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(-0.5, 0.5)
    write_gguf(tmp_path / "model.gguf", model)
    loaded = load_model(tmp_path / "model.gguf", dtype="float32")
    torch.testing.assert_close(dict(loaded.model.named_parameters()), dict(model.named_parameters()), rtol=0, atol=1e-7)
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    for name in ("layer_types", "sliding_window", "head_dim", "rope_parameters", "vocab_size", "eos_token_id"):
        assert getattr(loaded.model.config, name) == getattr(model.config, name)
    assert loaded.model.generation_config.eos_token_id == loaded.tokenizer.eos_token_id == 1
    assert loaded.tokenizer("a")["input_ids"] == [2, 4 + ord("a")]
    assert loaded.tokenizer.pad_token == "<pad>" and loaded.tokenizer.chat_template is None


def test_a_gguf_file_that_is_cut_off(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setenv("COFITUNE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x00" * 40)
    with pytest.raises(CofituneError, match=r"GGUF file .*cannot be read"):
        load_model(file)
    assert not list((tmp_path / "cache" / "gguf").glob("*"))


def test_a_gguf_file_that_is_not_there(tmp_path):
    with pytest.raises(CofituneError, match="No GGUF file at"):
        load_model(tmp_path / "model.gguf")


def test_a_part_of_a_gguf_file(tmp_path):
    (tmp_path / "model.gguf.part00").write_bytes(b"GGUF")
    with pytest.raises(CofituneError, match=r"part of a GGUF file: .*`cat model.gguf.\* > model.gguf`"):
        load_model(tmp_path / "model.gguf.part00")


def test_an_unknown_dtype(tiny_model_folder):
    with pytest.raises(CofituneError, match="dtype 'int4' is not known; choose one of auto"):
        load_model(tiny_model_folder, dtype="int4")
