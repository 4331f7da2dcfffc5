"""Drift from the base against the full distributions of two models."""

from __future__ import annotations

import copy

import pytest
import torch
from head_cases import FAMILIES, change_logits, make_model
from tiny import make_tiny_model

from cofitune_fast.data import Encoded
from cofitune_fast.errors import CofituneError
from cofitune_fast.scoring import base_states, drift, paired_difference

ROWS = [Encoded([1, 40, 41, 42 + n, *range(60, 62 + n)], 2 + n % 3, f"x:{n}") for n in range(6)]


def changed(model, *parts):
    """A copy of the model in which the weights whose names hold one of `parts` are others."""
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if any(part in name for part in parts):
                parameter.add_(torch.randn_like(parameter, dtype=torch.float32).to(parameter.dtype) * 0.1)
    return other


def put(model, other):
    model.load_state_dict(other.state_dict())


def reference(base, model):
    """(sum of KL, tokens) per row, from the models' own logits, a row at a time."""
    sums = []
    for row in ROWS:
        log_p, log_q = (torch.log_softmax(each(torch.tensor([row.input_ids])).logits[0].double(), -1)
                        for each in (base, model))
        places = slice(row.response_start - 1, len(row.input_ids) - 1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)[places]
        sums.append((kl.sum().item(), len(kl)))
    return sums


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("parts", [("layers.2.mlp",), ("layers.1", "embed_tokens")], ids=["layers", "tied head too"])
@torch.no_grad()
def test_drift_is_the_kl_of_the_full_distributions(monkeypatch, family, parts):
    monkeypatch.setattr(drift, "CHUNK_BYTES", 4 * 8 * 260 * 5)  # 5 tokens at a time
    monkeypatch.setattr(drift, "_BATCH_TOKENS", 24)
    model = make_tiny_model(family, **({"final_logit_softcapping": 2.0} if family == "gemma2" else {}))
    base = copy.deepcopy(model)
    kept = base_states(model, ROWS, 0)
    other = changed(model, *parts)
    put(model, other)
    score = kept.drift(model.train())
    assert model.training
    wanted = reference(base, other.eval())
    assert [item.tokens for item in score.items] == [tokens for _, tokens in wanted]
    assert [item.kl for item in score.items] == pytest.approx([kl for kl, _ in wanted], rel=1e-3, abs=1e-6)
    assert score.value == pytest.approx(sum(kl for kl, _ in wanted) / sum(n for _, n in wanted), rel=1e-3)
    assert score.value > 1e-4
    assert score.n == len(ROWS) and score.metric == "kl"
    put(model, base)
    assert [item.kl for item in kept.drift(model).items] == [0.0] * len(ROWS)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_head_gives_the_drift_of_the_models_logits(family):
    model = make_model(family)
    base = copy.deepcopy(model)
    kept = base_states(model, ROWS, 0)
    other = changed(model, "layers.1", "h.1", "lm_head")
    put(model, other)
    wanted = [kl for kl, _ in reference(base, other)]
    assert [item.kl for item in kept.drift(model).items] == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert min(wanted) > 1e-4


@torch.no_grad()
def test_logits_that_no_head_describes_are_kept_themselves():
    def masked(model):  # as Chameleon masks the tokens of images
        return change_logits(model, lambda logits: logits.index_fill(-1, torch.tensor([9]), -1e4))

    model = masked(make_tiny_model())
    base, other = masked(make_tiny_model()), masked(changed(make_tiny_model(), "layers.2"))
    kept = base_states(model, ROWS, 0)
    assert kept.head is None and kept.drift(model).value == 0
    put(model, other)
    wanted = [kl for kl, _ in reference(base, other)]
    assert [item.kl for item in kept.drift(model).items] == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    with pytest.raises(CofituneError, match="the base's none that could be described"):
        kept.drift(make_tiny_model())


@torch.no_grad()
def test_the_error_is_that_of_the_ratio_over_rows():
    model = make_tiny_model()
    kept = base_states(model, ROWS, 0)
    put(model, changed(model, "layers.2"))
    score = kept.drift(model)
    kl, tokens = torch.tensor(score.items, dtype=torch.float64).T
    influence = (kl - score.value * tokens) / tokens.mean()
    assert score.se == pytest.approx((influence.square().sum() / 30).sqrt().item(), rel=0.15)
    assert paired_difference(score, kept.drift(model)) == (0, 0)


@torch.no_grad()
def test_bfloat16_states_take_two_bytes_a_number():
    model = make_tiny_model(dtype=torch.bfloat16)
    kept = base_states(model, ROWS, 0)
    tokens = sum(len(row.input_ids) - row.response_start for row in ROWS)
    assert sum(states.numel() * states.element_size() for states in kept.states) == tokens * 32 * 2
    assert kept.head.weight.dtype == torch.bfloat16
    assert kept.drift(model).value == 0
    put(model, changed(model, "layers.2"))
    assert kept.drift(model).value > 0


@torch.no_grad()
def test_what_cannot_be_measured():
    model = make_tiny_model()
    with pytest.raises(CofituneError, match=r"on 1 row\(s\); a standard error needs at least 2"):
        base_states(model, ROWS[:1], 0)
    kept = base_states(model, ROWS, 0)
    with pytest.raises(CofituneError, match=r"is shape \[300, 32\], no bias, .* the base's shape \[260, 32\], no bias"):
        kept.drift(make_tiny_model(vocab_size=300))
    model.model.layers[0].mlp.up_proj.weight.fill_(float("nan"))
    with pytest.raises(CofituneError, match="drift from the base is not finite"):
        kept.drift(model)
