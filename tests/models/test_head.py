"""Only the chosen positions reach the head, and they get the logits they always had."""

import pytest
import torch
from tiny import make_tiny_model

from cofitune_fast.data import collate
from cofitune_fast.data.encode import Encoded
from cofitune_fast.errors import CofituneError
from cofitune_fast.models import logits_at, select_positions


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gemma2", "gemma3"])
def test_selected_logits_are_those_of_the_whole_forward(family):
    model = make_tiny_model(family)
    ids = torch.randint(4, 260, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.rand(3, 7, generator=torch.Generator().manual_seed(2)) < 0.4
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        with select_positions(model, mask):
            chosen = model(input_ids=ids).logits
        after = model(input_ids=ids).logits
    torch.testing.assert_close(chosen[0], whole[mask])
    torch.testing.assert_close(after, whole, rtol=0, atol=0)


def test_logits_at_a_mask_are_those_of_the_whole_forward(tiny_model):
    batch = collate([Encoded([5, 6, 7, 8, 9], 3), Encoded([10, 11, 12], 1)], pad_token_id=0)
    mask = torch.tensor([[False, True, True, False, True], [True, False, False, False, False]])
    with torch.no_grad():
        logits = logits_at(tiny_model, batch, mask)
        whole = tiny_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(logits, torch.stack([whole[0, 1], whole[0, 2], whole[0, 4], whole[1, 0]]))


def test_a_mask_of_another_shape_is_refused(tiny_model):
    with (
        pytest.raises(CofituneError, match=r"mask of positions is \(2, 3\).*head receives \(2, 4\)"),
        select_positions(tiny_model, torch.ones(2, 3, dtype=torch.bool)),
    ):
        tiny_model(input_ids=torch.ones(2, 4, dtype=torch.long))


def test_the_hook_goes_even_after_an_error(tiny_model):
    with pytest.raises(RuntimeError), select_positions(tiny_model, torch.ones(1, 1, dtype=torch.bool)):
        raise RuntimeError
    assert not tiny_model.get_output_embeddings()._forward_pre_hooks
