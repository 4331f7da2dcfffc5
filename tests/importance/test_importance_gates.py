"""The gate identity: scores from hooks equal the gradients of explicit gates that autograd multiplies in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import make_tiny_model

from cofitune_fast.importance.compute import compute_importance
from cofitune_fast.importance.gates import collect
from cofitune_fast.importance.names import HEAD, NEURON, OUTPUT, UNITS, unit_count
from cofitune_fast.importance.noise import dropout_only, seeded
from cofitune_fast.regions import resolve_layout

FAMILIES = ["llama", "qwen2", "qwen3", "gemma2"]
BASE = ("tiny", "f" * 64)


def make_batch(rows: int = 3, tokens: int = 11, seed: int = 1) -> dict[str, torch.Tensor]:
    """Right-padded rows of different lengths, the last half of each row being the response."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 260, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    labels = ids.clone()
    for row in range(rows):
        length = tokens - 2 * row
        mask[row, length:], ids[row, length:] = 0, 0
        labels[row, length:], labels[row, : length // 2] = -100, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def make_model(family: str):
    """A tiny model whose projection biases, where it has them, are not zero."""
    model = make_tiny_model(family)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def explicit_gates(model, layout, rows: int, passes: int) -> tuple[dict, list]:
    """Gates of ones [samples, units] that are multiplied into the forward; rows of one sample share theirs."""
    gates, handles = {}, []
    roles = {NEURON: "ffn.up", OUTPUT: "ffn.down", HEAD: "attn.o"}
    for layer in range(layout.num_layers):
        for kind in UNITS:
            gate = gates[kind, layer] = torch.ones(rows // passes, unit_count(layout, layer, kind), requires_grad=True)
            factor = lambda gate=gate, kind=kind: gate.repeat_interleave(passes, 0).repeat_interleave(  # noqa: E731
                8 if kind == HEAD else 1, 1
            )[:, None, :]
            module = layout.module(layout.at(layer, roles[kind])[0])
            if kind == HEAD:
                hook = module.register_forward_pre_hook(lambda _, inputs, f=factor: (inputs[0] * f(),))
            else:
                hook = module.register_forward_hook(lambda _, inputs, output, f=factor: output * f())
            handles.append(hook)
    return gates, handles


def assert_scores(importance, gates) -> None:
    for kind, scores in importance.scores.items():
        for layer, row in zip(importance.layers, scores, strict=True):
            expected = gates[kind, layer].grad.abs().mean(0)
            assert expected.max() > 0
            torch.testing.assert_close(row, expected, rtol=2e-3, atol=1e-3 * expected.max().item())


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_gradients_of_explicit_gates_of_the_task_loss(family):
    model, batch = make_model(family), make_batch()
    importance = compute_importance(model, [batch], proxy="task_nll", base=BASE)
    gates, _ = explicit_gates(model, resolve_layout(model), 3, passes=1)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    for row in range(3):
        F.cross_entropy(logits[row, :-1], batch["labels"][row, 1:]).backward(retain_graph=True)
    assert_scores(importance, gates)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_gradients_of_explicit_gates_of_the_dropout_loss(family):
    model, batch = make_model(family), make_batch()
    importance = compute_importance(model, [batch], dropout=0.1, seed=5, base=BASE)
    layout = resolve_layout(model)
    gates, _ = explicit_gates(model, layout, 6, passes=2)
    first_seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(5)))
    with dropout_only(layout, 0.1), seeded(model, first_seed):
        logits = model(
            input_ids=batch["input_ids"].repeat_interleave(2, 0),
            attention_mask=batch["attention_mask"].repeat_interleave(2, 0),
        ).logits
    log_p = logits.log_softmax(-1)
    for sample in range(3):
        p, q = (log_p[2 * sample + i][batch["attention_mask"][sample].bool()] for i in (0, 1))
        (p.exp() * (p - q)).sum(-1).mean().backward(retain_graph=True)
    assert_scores(importance, gates)


def test_the_absolute_value_is_taken_per_sample():
    model, batch = make_tiny_model(), make_batch()
    together = compute_importance(model, [batch], proxy="task_nll", base=BASE)
    single = [
        compute_importance(model, [{name: t[row : row + 1] for name, t in batch.items()}], proxy="task_nll", base=BASE)
        for row in range(3)
    ]
    gates, _ = explicit_gates(model, resolve_layout(model), 3, passes=1)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    sum(F.cross_entropy(logits[row, :-1], batch["labels"][row, 1:]) for row in range(3)).backward()
    for kind, scores in together.scores.items():
        mean = torch.stack([one.scores[kind] for one in single]).mean(0)
        torch.testing.assert_close(scores, mean, rtol=1e-3, atol=1e-3 * mean.max().item())
        signed = torch.stack([gates[kind, layer].grad.mean(0) for layer in range(4)]).abs()
        assert (scores - signed).abs().max() > 0.05 * scores.max()  # the signed mean cancels


def test_a_region_measures_its_layers_only_and_alike():
    model, batch = make_tiny_model(), make_batch()
    everywhere = compute_importance(model, [batch], proxy="task_nll", base=BASE)
    part = compute_importance(model, [batch], "ffn@1;attn.q@3", proxy="task_nll", base=BASE, units=[NEURON])
    assert part.layers == (1, 3) and set(part.scores) == {NEURON}
    torch.testing.assert_close(part.scores[NEURON], everywhere.scores[NEURON][[1, 3]], rtol=1e-4, atol=1e-8)


def test_no_graph_below_the_lowest_gate_and_no_weight_gradient():
    model, batch = make_tiny_model(), make_batch()
    model.enable_input_require_grads()  # as gradient checkpointing does; it would make a graph from the embedding up
    layout = resolve_layout(model)
    reached = []
    for layer in range(4):
        layout.decoder_layer(layer).register_forward_hook(
            lambda _, inputs, output, layer=layer: output.requires_grad
            and output.register_hook(lambda grad: reached.append(layer))
            and None
        )
    with collect(model, layout, [2, 3], UNITS) as gates:
        gates.attention_mask = batch["attention_mask"]
        assert not any(parameter.requires_grad for parameter in model.parameters())
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        output.logits.float().logsumexp(-1).sum().backward()
    assert reached == [3, 2]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert gates.scores[NEURON][2].max() > 0


def test_padding_counts_for_nothing():
    model, batch = make_tiny_model(), make_batch(rows=1)
    padded = {
        "input_ids": F.pad(batch["input_ids"], (0, 5), value=7),
        "attention_mask": F.pad(batch["attention_mask"], (0, 5), value=0),
        "labels": F.pad(batch["labels"], (0, 5), value=-100),
    }
    plain = compute_importance(model, [batch], proxy="task_nll", base=BASE)
    with_padding = compute_importance(model, [padded], proxy="task_nll", base=BASE)
    for kind in UNITS:
        torch.testing.assert_close(with_padding.scores[kind], plain.scores[kind], rtol=1e-3, atol=1e-7)
