"""Digests must see every bit, the dtype, the shape and the name, and nothing else."""

from __future__ import annotations

import hashlib

import pytest
import torch
from tiny import make_tiny_model
from torch import nn

from cofitune_fast.errors import CofituneError
from cofitune_fast.models import fingerprint as fp


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.uint8])
def test_digest_is_sha256_of_dtype_shape_and_bytes(dtype):
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    raw = tensor.view(torch.uint8).numpy().tobytes()
    header = f"{str(dtype).removeprefix('torch.')} (3, 4)\n".encode()
    assert fp.tensor_digest(tensor) == hashlib.sha256(header + raw).hexdigest()


def test_digest_is_the_same_in_chunks(monkeypatch):
    tensor = torch.randn(1000)
    whole = fp.tensor_digest(tensor)
    monkeypatch.setattr(fp, "_CHUNK_BYTES", 96)
    assert fp.tensor_digest(tensor) == whole


def test_digest_reads_values_not_strides():
    tensor = torch.randn(5, 7)
    assert fp.tensor_digest(tensor.t().contiguous().t()) == fp.tensor_digest(tensor)
    assert fp.tensor_digest(tensor.t()) != fp.tensor_digest(tensor)


def test_digest_tells_dtype_and_shape_apart():
    zeros = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(()), torch.zeros(0)]
    assert len({fp.tensor_digest(tensor) for tensor in zeros}) == len(zeros)


def test_negative_zero_is_another_bit_pattern():
    assert fp.tensor_digest(torch.tensor([0.0])) != fp.tensor_digest(torch.tensor([-0.0]))


def test_meta_tensor_is_refused():
    with pytest.raises(CofituneError, match="meta device has no bytes"):
        fp.tensor_digests(nn.Linear(2, 2, device="meta"))


def test_tied_parameters_appear_once():
    tied, untied = make_tiny_model(), make_tiny_model(tie_word_embeddings=False)
    assert "lm_head.weight" not in fp.tensor_digests(tied)
    assert "lm_head.weight" in fp.tensor_digests(untied)


def test_persistent_buffers_count_and_others_do_not():
    module = nn.Module()
    module.register_buffer("kept", torch.ones(2))
    module.register_buffer("derived", torch.ones(3), persistent=False)
    module.register_buffer("absent", None)
    assert set(fp.tensor_digests(module)) == {"kept"}


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("_orig_mod.model.norm.weight", "model.norm.weight"),
        ("module.model.norm.weight", "model.norm.weight"),
        ("module._orig_mod.model.layers.0._orig_mod.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("_fsdp_wrapped_module.a._checkpoint_wrapped_module.b", "a.b"),
        ("model.module.weight", "model.module.weight"),
        ("module", "module"),
    ],
)
def test_normalize_name(raw, plain):
    assert fp.normalize_name(raw) == plain


def test_wrapped_model_has_the_same_digests(tiny_model):
    plain = fp.tensor_digests(tiny_model)
    assert fp.tensor_digests(torch.compile(tiny_model)) == plain
    assert fp.tensor_digests(nn.DataParallel(tiny_model)) == plain


def test_fingerprint_is_over_sorted_digests(tiny_model):
    digests = fp.tensor_digests(tiny_model)
    assert fp.fingerprint(tiny_model) == fp.combine_digests(dict(reversed(digests.items())))
    expected = hashlib.sha256("".join(f"{name}\0{digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()
    assert fp.fingerprint(tiny_model) == expected


def test_fingerprint_sees_one_bit_and_the_dtype(tiny_model):
    before = fp.fingerprint(tiny_model)
    assert fp.fingerprint(make_tiny_model()) == before
    assert fp.fingerprint(make_tiny_model(dtype=torch.bfloat16)) != before
    with torch.no_grad():
        tiny_model.model.norm.weight.view(torch.int32)[3] ^= 1
    assert fp.fingerprint(tiny_model) != before
