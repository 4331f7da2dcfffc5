"""The parts of fused projections are what their roles say, shown by what the attention or the FFN does with them."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, tiny_family

from cofitune_fast.regions import Cell, Layout, resolve_layout

IDS = torch.tensor([[5, 9, 7, 33, 60, 8]])


def present(*names: str) -> list[str]:
    return [name for name in names if name in FAMILIES]


def input_of(model, layout: Layout, cell: Cell, change=None, of: Cell | None = None) -> torch.Tensor:
    """Input of a cell's projection, with `change` applied to the output of the projection that `of` is a part of."""
    seen = []
    handles = [layout.module(cell).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))]
    if of is not None:
        def changed(_module, _inputs, output):
            output = output.clone()
            part = of.part if of.part is None else type(of.part)(output.dim() - 1, *of_range(of))
            change(output if part is None else part.of(output))
            return output

        handles.append(layout.module(of).register_forward_hook(changed))
    try:
        with torch.no_grad():
            model(input_ids=IDS, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0].reshape(IDS.shape[1], -1)


def noise(like: torch.Tensor) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0))


def of_range(cell: Cell) -> tuple[int, int, int]:
    return cell.part.start, cell.part.stop, cell.part.period


def attentions(layout: Layout) -> int:
    """A layer whose attention has parts of a fused projection."""
    return next(cell.layer for cell in layout.cells if cell.part is not None and cell.role in ("attn.q", "attn.v"))


@pytest.mark.parametrize("family", present(
    "phi3", "gpt2", "gpt_neox", "bloom", "falcon", "mpt", "gpt_bigcode", "codegen", "persimmon",
    "qwen3_5_text", "qwen3_next", "axk2", "deepseek_v3", "minicpm3", "falcon:one-key", "falcon:heads",
    "gpt_bigcode:heads",
))
def test_queries_keys_and_values(family):
    """A query moves no attention where there is one key; a key moves later tokens only; a value moves its own, too."""
    model = tiny_family(family)
    layout = resolve_layout(model)
    layer = attentions(layout)
    output = layout.at(layer, "attn.o")[0]
    plain = input_of(model, layout, output)
    moved = {}
    for role in ("attn.q", "attn.k", "attn.v", "attn.gate"):
        for cell in layout.at(layer, role):
            if cell.part is not None:
                states = input_of(model, layout, output, lambda part: part[0, 0].add_(noise(part[0, 0])), cell)
                moved[role] = (states - plain).abs().amax(1) > 1e-6
    assert moved, "no part was found"
    first_and_later = {"attn.q": (False, False), "attn.k": (False, True), "attn.v": (True, True),
                       "attn.gate": (True, False)}
    for role, places in moved.items():
        assert (bool(places[0]), bool(places[1:].any())) == first_and_later[role], role


@pytest.mark.parametrize("family", present("phi3", "gpt_neox", "bloom", "falcon", "gpt2", "codegen", "deepseek_v3"))
def test_heads_are_in_their_places(family):
    """The values of one key-value head reach the columns of its heads in the output projection, and no others."""
    model = tiny_family(family)
    layout = resolve_layout(model)
    layer = attentions(layout)
    output, cell = layout.at(layer, "attn.o")[0], layout.at(layer, "attn.v")[0]
    block = layout.blocks[output.block]
    plain = input_of(model, layout, output)
    size = plain.shape[1] // block.heads
    for head in range(block.key_value_heads):
        def one_head(part, head=head):
            flat = part.reshape(*part.shape[:2], -1).clone()
            flat[..., head * size:(head + 1) * size] += 1.0
            part.copy_(flat.reshape(part.shape))

        moved = (input_of(model, layout, output, one_head, cell) - plain).abs().amax(0) > 1e-6
        shared = block.heads // block.key_value_heads
        expected = torch.zeros(block.heads, size, dtype=torch.bool)
        expected[head * shared:(head + 1) * shared] = True
        assert torch.equal(moved, expected.flatten())


@pytest.mark.parametrize("family", present(
    "phi3", "glm4", "modernbert-decoder", "granitemoeshared", "qwen3_moe", "mixtral", "gpt_oss", "llama4_text",
    "jetmoe",
))
def test_gate_and_up(family):
    """The layer's output is affine in `ffn.up`, and is not in `ffn.gate`."""
    model = tiny_family(family)
    layout = resolve_layout(model)
    cell_of = {cell.role: cell for cell in layout.cells if cell.part is not None and cell.role.startswith("ffn.")}
    assert set(cell_of) == {"ffn.gate", "ffn.up"}
    layer = cell_of["ffn.up"].layer

    def output() -> torch.Tensor:
        seen = []
        # Behind a norm after the FFN, as GLM-4 has one, nothing is affine.
        handle = (layout.ffn(layer) or layout.decoder_layer(layer)).register_forward_hook(
            lambda _, inputs, result: seen.append(result[0] if isinstance(result, tuple) else result))
        with torch.no_grad():
            model(input_ids=IDS, use_cache=False)
        handle.remove()
        return seen[0].double()

    for role, affine in (("ffn.up", True), ("ffn.gate", False)):
        (cell,) = [cell for cell in layout.at(layer, role) if cell.part is not None][:1]
        weight = layout.parameter(cell)
        kept, results = weight.clone(), []
        for factor in (1.0, 1.5, 2.0):
            weight.copy_(kept * factor)
            results.append(output())
        weight.copy_(kept)
        bend = (results[0] - 2 * results[1] + results[2]).abs().max() / (results[2] - results[0]).abs().max()
        assert (bend < 1e-4) == affine, (role, bend)
