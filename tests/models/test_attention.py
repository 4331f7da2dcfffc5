"""Attention over shared tokens: in bfloat16 on a CPU by plain products, held against SDPA in float32."""

from types import SimpleNamespace

import pytest
import torch

from cofitune_fast.models import attention


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_products_are_causal_attention(groups, scaling):
    """Output and all gradients, element-wise, of the same bfloat16 numbers."""
    generator = torch.Generator().manual_seed(0)
    heads = 2
    short = [torch.randn(2, count, 11, 8, generator=generator).bfloat16().requires_grad_()
             for count in (heads * groups, heads, heads)]
    exact = [states.detach().float().requires_grad_() for states in short]
    weight = torch.randn(2, 11, heads * groups, 8, generator=generator)
    found = attention._causal_products(*short, scaling)
    query, key, value = exact
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), is_causal=True, scale=scaling
    ).transpose(1, 2)
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.03)
    ours = torch.autograd.grad(found, short, weight.bfloat16())
    for one, other in zip(ours, torch.autograd.grad(expected, exact, weight), strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.03 * other.abs().max().item())


@pytest.mark.parametrize("dtype, length, dropout, expected", [
    (torch.bfloat16, attention.SHORT, 0.0, True), (torch.bfloat16, attention.SHORT + 1, 0.0, False),
    (torch.float32, 9, 0.0, False), (torch.bfloat16, 9, 0.1, False),
])
def test_when_products_are_taken(dtype, length, dropout, expected):
    assert attention._by_products(torch.empty(1, 2, length, 4, dtype=dtype), {"dropout": dropout}) is expected


def test_rows_are_taken_apart_and_put_together():
    """Two rows, a b c and a b d: the trie's tokens see what they see in their rows, and no other row's."""
    called = SimpleNamespace(num_key_value_groups=1, is_causal=True)
    states = torch.randn(1, 2, 4, 8)
    rows, owners = torch.tensor([[0, 1, 2], [0, 1, 3]]), torch.tensor([0, 1, 2, 5])
    found, _ = attention._attend(called, states, states, states, None, rows=rows, owners=owners)
    for row in rows:
        alone = states[:, :, row]
        expected = torch.nn.functional.scaled_dot_product_attention(alone, alone, alone, is_causal=True)
        torch.testing.assert_close(found[0, row], expected[0].transpose(0, 1))
