"""The importance file: equality after save and load, and every refusal."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from cofitune_fast.errors import CofituneError
from cofitune_fast.importance import Importance
from cofitune_fast.importance.normalize import abs_tanh_z


def make_importance(**changes) -> Importance:
    generator = torch.Generator().manual_seed(0)
    scores = {"ffn.neuron": torch.rand(2, 6, generator=generator), "attn.head": torch.rand(2, 4, generator=generator)}
    return Importance(**{
        "scores": scores, "layers": (1, 3), "samples": 7, "base_model": "org/Modell-ü", "base_fingerprint": "ab" * 32,
        "settings": {"proxy": "kl_dropout", "dropout": 0.003}, **changes,
    })


def test_save_and_load_are_equal(tmp_path):
    saved = make_importance()
    path = tmp_path / "sub" / "importance.safetensors"
    saved.save(path)
    loaded = Importance.load(path)
    assert {kind: scores.tolist() for kind, scores in loaded.scores.items()} == {
        kind: scores.tolist() for kind, scores in saved.scores.items()
    }
    for name in ("layers", "samples", "base_model", "base_fingerprint", "settings"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "importance.safetensors"
    make_importance().save(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        make_importance(settings={"bad": object()}).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_load_refuses_what_is_no_importance(tmp_path):
    path = tmp_path / "importance.safetensors"
    with pytest.raises(CofituneError, match=r"No importance at .*the file does not exist"):
        Importance.load(path)
    with pytest.raises(CofituneError, match="No importance at"):
        Importance.load(tmp_path)
    path.write_text("not safetensors at all")
    with pytest.raises(CofituneError, match="cannot be read as safetensors"):
        Importance.load(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(CofituneError, match="is a safetensors file but no importance"):
        Importance.load(path)


@pytest.mark.parametrize("keep", [0, 5, 200, -4])
def test_load_refuses_a_truncated_file(tmp_path, keep):
    path = tmp_path / "importance.safetensors"
    make_importance().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CofituneError, match="cannot be read as safetensors"):
        Importance.load(path)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ('{"layers": [1]}', r"damaged \(The scores ffn.neuron must be float32 \[1 layers"),
        ('{"layers": [1, 3], "unknown": 1}', "damaged .*unknown"),
        ('{"samples": 3}', "damaged: .*layers"),
        ('{"layers": 3}', "damaged"),
        ("{", "damaged"),
        ("[]", "damaged"),
    ],
)
def test_load_refuses_damaged_metadata(tmp_path, about, words):
    path = tmp_path / "importance.safetensors"
    metadata = {"format": "cofitune_fast.importance", "version": "1", "importance": about}
    save_file({"ffn.neuron": torch.zeros(2, 3)}, path, metadata)
    with pytest.raises(CofituneError, match=words):
        Importance.load(path)


def test_load_refuses_another_version(tmp_path):
    path = tmp_path / "importance.safetensors"
    save_file({"ffn.neuron": torch.zeros(1, 3)}, path, {
        "format": "cofitune_fast.importance", "version": "9", "importance": json.dumps({"layers": [0]}),
    })
    with pytest.raises(CofituneError, match="format version 9, this release reads version 1"):
        Importance.load(path)


def test_check_names_both_models():
    importance = make_importance()
    importance.check("ab" * 32)
    with pytest.raises(CofituneError, match=r"org/Modell-ü \(fingerprint abab.*the tuned one has fingerprint cdcd"):
        importance.check("cd" * 32, "the tuned one")
    with pytest.raises(CofituneError, match="does not record its base model"):
        make_importance(base_fingerprint="").check("ab" * 32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scores": {}}, "holds no scores"),
        ({"layers": ()}, "must be ascending and distinct"),
        ({"layers": (3, 1)}, "must be ascending and distinct"),
        ({"scores": {"ffn.neurons": torch.zeros(2, 3)}}, "'ffn.neurons' is not known; did you mean 'ffn.neuron'"),
        ({"scores": {"ffn.neuron": torch.zeros(3, 3)}}, r"float32 \[2 layers, units\], not torch.float32 \[3, 3\]"),
        ({"scores": {"ffn.neuron": torch.zeros(2, 3).double()}}, "not torch.float64"),
        ({"scores": {"ffn.neuron": torch.tensor([[1.0], [-1.0]])}}, "ffn.neuron of layer 3 are not all finite"),
        ({"scores": {"attn.head": torch.tensor([[torch.nan], [1.0]])}}, "attn.head of layer 1 are not all finite"),
    ],
)
def test_scores_of_another_form_are_refused(changes, words):
    with pytest.raises(CofituneError, match=words):
        make_importance(**changes)


def test_normalized_covers_every_kind():
    importance = make_importance()
    normalized = importance.normalized("paper")
    for kind, scores in importance.scores.items():
        torch.testing.assert_close(normalized[kind], abs_tanh_z(scores), rtol=0, atol=0)


def test_against_a_task_by_hand():
    base = make_importance(scores={"ffn.neuron": torch.tensor([[5.0, 1.0, 3.0], [2.0, 2.0, 9.0]])})
    task = make_importance(scores={"ffn.neuron": torch.tensor([[7.0, 8.0, 1.0], [1.0, 2.0, 3.0]])},
                           settings={"proxy": "task_nll"})
    contrast = base.against(task)
    expected = torch.tensor([[1.0 * 0.5, 0.0, 0.5 * 1.0], [0.25 * 1.0, 0.25 * 0.5, 0.0]])  # r (1 - r_task)
    torch.testing.assert_close(contrast.scores["ffn.neuron"], expected)
    assert contrast.settings["proxy"] == "kl_dropout" and contrast.settings["against"]["proxy"] == "task_nll"
    with pytest.raises(CofituneError, match="same layers and unit kinds"):
        base.against(make_importance())
    with pytest.raises(CofituneError, match="was measured on"):
        base.against(make_importance(scores=task.scores, base_fingerprint="cd" * 32))
