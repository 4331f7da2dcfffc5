"""Every family of the table makes a model that runs forward and backward, whole."""

from __future__ import annotations

import pytest
import torch
from families import CHOSEN, HIDDEN, VOCABULARY, tiny_family

NO_TEXT = ("vision", "visual", "image", "projector", "connector")  # parts of a wrapper that text does not reach


@pytest.mark.parametrize("family", CHOSEN)
def test_a_tiny_model_of_each_family_has_a_gradient_at_every_text_parameter(family):
    model = tiny_family(family)
    assert model.get_input_embeddings().weight.shape == (VOCABULARY, HIDDEN)
    tokens = torch.randint(4, VOCABULARY - 4, (2, 24), generator=torch.Generator().manual_seed(0))

    loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()

    assert torch.isfinite(loss)
    missing = []
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
        # An indexer chooses keys, through which no gradient flows.
        elif parameter.requires_grad and "indexer" not in name and not any(part in name for part in NO_TEXT):
            missing.append(name)
    assert not missing


def test_each_call_makes_a_model_of_its_own_that_only_the_seed_decides():
    one, again, other = tiny_family("llama"), tiny_family("llama"), tiny_family("llama", seed=1)
    for first, second, third in zip(one.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second) and not torch.equal(first, third)
    before = again.lm_head.weight.detach().clone()
    with torch.no_grad():
        one.lm_head.weight.zero_()
    assert torch.equal(again.lm_head.weight, before) and torch.equal(tiny_family("llama").lm_head.weight, before)
    assert tiny_family("llama", torch.bfloat16).lm_head.weight.dtype == torch.bfloat16
