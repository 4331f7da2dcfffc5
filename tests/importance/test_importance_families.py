"""Importance and masks in models of every structure, against real gates that autograd differentiates."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from families import tiny_family
from safetensors import safe_open
from safetensors.torch import save_file

from cofitune_fast.errors import CofituneError
from cofitune_fast.importance import Importance, Preset, compute_importance, import_authors_importance
from cofitune_fast.importance.gates import collect
from cofitune_fast.importance.names import HEAD, NEURON, OUTPUT, UNITS, unit_count, units_of
from cofitune_fast.importance.noise import dropout_only, seeded
from cofitune_fast.optim import MaskedAdamW
from cofitune_fast.regions import Region, resolve_layout, whole_name

STRUCTURES = {
    "llama": "separate projections", "phi3": "fused by blocks", "gpt2": "transposed, fused, biases",
    "gpt_neox": "fused by heads, biases", "falcon": "fused by groups", "opt": "FFN in the layer, on flat tokens",
    "nemotron": "no gate", "qwen3_5_text": "mixers, queries with a gate", "qwen3_moe": "experts",
    "deepseek_v3": "latent attention, shared experts", "gpt_oss": "interleaved, transposed experts with biases",
    "llama4_text": "experts' output added in place", "nemotron_h": "one mixer per layer, experts without a gate",
    "gemma3n_text": "keys shared by layers", "gemma4_text": "heads of two sizes", "zamba2": "layers that share a block",
    "hrm_text": "layers that run twice",
}  # fmt: skip
BASE = ("tiny", "f" * 64)


def make_batch(rows: int = 2, tokens: int = 12) -> dict[str, torch.Tensor]:
    """Right-padded rows of different lengths; the last half of each is the response."""
    ids = torch.randint(4, 250, (rows, tokens), generator=torch.Generator().manual_seed(1))
    mask, labels = torch.ones_like(ids), ids.clone()
    for row in range(rows):
        length = tokens - 3 * row
        mask[row, length:], ids[row, length:] = 0, 0
        labels[row, length:], labels[row, : length // 2] = -100, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class RealGates:
    """A model with gates that are multiplied in; gates: (kind, layer) -> factors [units], in the units' order.

    Those of experts are multiplied into the weights, as a neuron of an expert is nowhere else to be reached.
    """

    def __init__(self, model, layers):
        self.model, self.layout = model, resolve_layout(model)
        self.gates = {
            (kind, layer): torch.ones(unit_count(self.layout, layer, kind), requires_grad=True)
            for kind in UNITS for layer in layers
        }

    def _cells(self):
        for (kind, layer), gate in self.gates.items():
            cells = units_of(self.layout, layer, kind)
            for (cell, _), own in zip(cells, gate.split([count for _, count in cells]), strict=True):
                yield kind, cell, own

    @contextmanager
    def _hooks(self):
        handles = []
        for kind, cell, gate in self._cells():
            module = self.layout.module(cell)
            if self.layout.whole(cell).dim() == 3:
                continue
            if kind == OUTPUT:
                handles.append(module.register_forward_hook(lambda _, inputs, output, gate=gate: output * gate))
                continue

            def scaled(_, inputs, gate=gate):
                return (inputs[0] * gate.repeat_interleave(inputs[0].shape[-1] // len(gate)),)

            handles.append(module.register_forward_pre_hook(scaled))
        yield
        for handle in handles:
            handle.remove()

    def _expert_weights(self):
        named, weights = dict(self.model.named_parameters()), {}
        for kind, cell, gate in self._cells():
            weight = weights.get(cell.parameter, named[cell.parameter])
            if weight.dim() == 3:
                experts, (rows, columns) = len(weight), weight.shape[1:]
                of_rows = (kind == OUTPUT) == (cell.out == 1)
                weights[cell.parameter] = weight * (
                    gate.view(experts, rows, 1) if of_rows else gate.view(experts, 1, columns)
                )
                if kind == OUTPUT and cell.bias:
                    weights[cell.bias] = named[cell.bias] * gate.view(experts, -1)
        return weights

    def __call__(self, **inputs):
        with self._hooks():
            return torch.func.functional_call(self.model, self._expert_weights(), kwargs={**inputs, "use_cache": False})

    def loss(self, batch, row):
        """NLL of the response of a row, without its padding."""
        length = int(batch["attention_mask"][row].sum())
        ids = batch["input_ids"][row : row + 1, :length]
        logits = self(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return F.cross_entropy(logits[0, :-1].float(), batch["labels"][row, 1:length])


def assert_scores(importance, expected) -> None:
    """expected: (kind, layer) -> scores."""
    seen = 0
    for kind, scores in importance.scores.items():
        for layer, row in zip(importance.layers, scores, strict=True):
            assert row.shape == expected[kind, layer].shape
            if row.numel():
                seen += 1
                torch.testing.assert_close(
                    row, expected[kind, layer], rtol=2e-3, atol=1e-3 * expected[kind, layer].max().item() + 1e-12
                )
    assert seen == sum(bool(row.numel()) for row in expected.values())
    assert all(row.max() > 0 for row in expected.values() if row.numel())


@pytest.mark.parametrize("family", STRUCTURES)
def test_scores_are_gradients_of_real_gates(family):
    model, batch = tiny_family(family), make_batch()
    importance = compute_importance(model, [batch], proxy="task_nll", base=BASE)
    real = RealGates(model, importance.layers)
    expected = {key: torch.zeros_like(gate) for key, gate in real.gates.items()}
    for row in range(2):
        keys = [key for key, gate in real.gates.items() if gate.numel()]
        gradients = torch.autograd.grad(real.loss(batch, row), [real.gates[key] for key in keys])
        for key, gradient in zip(keys, gradients, strict=True):
            expected[key] = expected[key].detach() + gradient.abs() / 2
    assert_scores(importance, expected)


def test_scores_of_experts_are_gradients_of_real_gates_of_the_dropout_loss():
    model, batch = tiny_family("qwen3_moe"), make_batch(rows=1)
    importance = compute_importance(model, [batch], dropout=0.1, seed=5, base=BASE)
    real = RealGates(model, importance.layers)
    ids = batch["input_ids"].repeat(2, 1)
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(5)))
    with dropout_only(real.layout, 0.1), seeded(model, seed):
        log_p, log_q = real(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.log_softmax(-1)
    gradients = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(-1).mean(), list(real.gates.values()))
    assert_scores(importance, {key: one.abs() for key, one in zip(real.gates, gradients, strict=True)})


def test_an_expert_without_tokens_has_no_importance():
    model = tiny_family("qwen3_moe")
    layout = resolve_layout(model)
    layout.parameter(layout.at(2, "ffn.router")[0]).data[1] = 0  # its logit is below the largest two for most tokens
    sent = []
    experts = layout.module(layout.at(2, "ffn.down")[0])
    experts.register_forward_pre_hook(lambda _, inputs: sent.append(inputs[1].flatten().unique().tolist()))
    batch = {name: one[:, :1].repeat(1, 3) for name, one in make_batch(rows=1).items()}
    batch["labels"] = batch["input_ids"]
    importance = compute_importance(model, [batch], "ffn@2", proxy="task_nll", base=BASE)
    (chosen,) = sent
    assert 0 < len(chosen) < 4
    for kind in (NEURON, OUTPUT):
        (row,) = importance.scores[kind].view(1, 4, -1)
        assert [expert for expert in range(4) if row[expert].max() > 0] == chosen


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3"])
def test_experts_come_back_as_they_were(family):
    model = tiny_family(family)
    layout = resolve_layout(model)
    model.requires_grad_(False)
    down = layout.whole(layout.at(2, "ffn.down")[0])
    down.grad = before = torch.ones_like(down)
    with pytest.raises(RuntimeError, match="in the middle"), collect(model, layout, [2]):
        assert down.requires_grad and down.grad is None
        raise RuntimeError("in the middle")
    compute_importance(model, [make_batch()], "ffn@2", proxy="task_nll", base=BASE)
    assert down.grad is before and not any(parameter.requires_grad for parameter in model.parameters())
    assert not down._post_accumulate_grad_hooks


def closed_units(real: RealGates, kinds) -> Importance:
    """Close some units in every layer, those of the last key-value head for attention; importance 1 for these."""
    # Layers that use the keys of a lower one have no key-value heads of their own.
    groups = max(block.key_value_heads for block in real.layout.blocks.values()) or 1
    scores = {}
    for kind in UNITS:
        rows = []
        for layer in range(real.layout.num_layers):
            important = torch.zeros(unit_count(real.layout, layer, kind))
            start = 0
            for _, count in units_of(real.layout, layer, kind):
                first = count - count // groups if kind == HEAD else count - 1
                important[start + first : start + count] = float(kind in kinds)
                start += count
            rows.append(important)
            real.gates[kind, layer] = 1 - important
        scores[kind] = tuple(rows)
    return Importance(scores, tuple(range(real.layout.num_layers)))


def gradients(real: RealGates, batch) -> dict[str, torch.Tensor]:
    real.model.zero_grad()
    sum(real.loss(batch, row) for row in range(2)).backward()
    return {name: parameter.grad for name, parameter in real.model.named_parameters() if parameter.grad is not None}


def named(layout, values, name):
    """The tensor or part called `name` among the values of whole tensors."""
    place = layout.part(name)
    return values[name] if place is None else place[1].of(values[whole_name(name)])


@pytest.mark.parametrize("kinds", [(NEURON, HEAD), (OUTPUT,)], ids=["neuron-head", "output"])
@pytest.mark.parametrize("family", [name for name in STRUCTURES if name not in ("zamba2", "hrm_text")])
def test_a_mask_covers_just_the_weights_that_a_closed_unit_cuts_off(family, kinds):
    model, batch = tiny_family(family), make_batch(tokens=40)  # every expert should see some
    for module in model.modules():  # a ReLU that is shut for all tokens would look like a closed unit
        for name, child in module.named_children():
            if type(child).__name__ in ("ReLU", "ReLUSquaredActivation"):
                setattr(module, name, torch.nn.GELU())
    real = RealGates(model, range(resolve_layout(model).num_layers))
    before = gradients(real, batch)
    importance = closed_units(real, kinds)
    after = gradients(real, batch)
    preset = Preset("identity", lambda scores: scores, "output" if OUTPUT in kinds else "neuron")
    for text in ("all@all", "attn.q+attn.v+ffn.up@all"):
        region = Region.parse(text)
        masks = importance.masks(model, region, preset)
        covered = 0
        for name, parameter in region.parameters(model):
            gradient, closed = (named(real.layout, values, name) for values in (before, after))
            mask = masks.get(name, torch.ones(())).expand(parameter.shape)
            reached = gradient.abs() > 1e-8  # the bias of keys acts on nothing, but for rounding
            assert torch.equal((mask == 0) & reached, (closed == 0) & reached), name
            assert torch.equal(mask, (mask != 0).float())
            covered += int((mask == 0).sum())
        assert covered or (text != "all@all" and OUTPUT in kinds)


def stepped(family, text, masks):
    """The region's tensors after a step of a learning rate that moves every weight, and before it."""
    model = tiny_family(family)
    pairs = Region.parse(text).apply(model)
    before = {name: parameter.detach().clone() for name, parameter in pairs}
    optimizer = MaskedAdamW(pairs, lr=0.1, weight_decay=0.1, masks=masks)
    batch = make_batch()
    model(input_ids=batch["input_ids"], labels=batch["labels"], use_cache=False).loss.backward()
    optimizer.step()
    return before, {name: parameter.detach() for name, parameter in pairs}


@pytest.mark.parametrize("text", ["all@all", "attn.q+attn.v+ffn.up@all"])
@pytest.mark.parametrize("family", [name for name in STRUCTURES if name not in ("zamba2", "hrm_text")])
def test_a_step_leaves_masked_units_alone(family, text):
    model = tiny_family(family)
    real = RealGates(model, range(resolve_layout(model).num_layers))
    for kinds, down in (((NEURON, HEAD), "neuron"), ((OUTPUT,), "output")):
        masks = closed_units(real, kinds).masks(model, text, Preset("identity", lambda scores: scores, down))
        before, after = stepped(family, text, masks)
        for name, mask in masks.items():
            moved = before[name] != after[name]
            assert torch.equal(moved, (mask != 0).expand(moved.shape)), name
    _, plain = stepped(family, text, None)
    _, ones = stepped(family, text, {name: torch.ones_like(mask) for name, mask in masks.items()})
    assert all(torch.equal(ones[name], plain[name]) for name in plain)


def test_layers_that_differ_are_normalised_and_saved_one_by_one(tmp_path):
    model, batch = tiny_family("nemotron_h"), make_batch()
    importance = compute_importance(model, [batch], proxy="task_nll", base=BASE)
    assert isinstance(importance.scores[NEURON], tuple)
    path = tmp_path / "importance.safetensors"
    importance.save(path)
    loaded = Importance.load(path)
    for kind, scores in importance.scores.items():
        for row, same, rank in zip(scores, loaded.scores[kind], importance.normalized("rank")[kind], strict=True):
            assert torch.equal(row, same)
            alone = Importance({kind: row[None]}, (0,)).normalized("rank")[kind][0] if len(row) else row
            assert torch.equal(rank, alone)
    contrast = importance.against(loaded)
    for row, own in zip(contrast.scores[NEURON], importance.normalized("rank")[NEURON], strict=True):
        torch.testing.assert_close(row, own * (1 - own))
    once, twice = importance.masks(model, "all@all", "rank"), importance.masks(model, "all@all", "rank", also=[loaded])
    assert once and all(torch.equal(mask, twice[name]) for name, mask in once.items())


def test_a_file_that_lacks_a_layer_is_damaged(tmp_path):
    path = tmp_path / "importance.safetensors"
    ragged = Importance({NEURON: (torch.ones(2), torch.ones(3))}, (0, 1))
    ragged.save(path)
    with safe_open(path, framework="pt") as file:
        metadata, first = file.metadata(), file.get_tensor("ffn.neuron.0")
    save_file({"ffn.neuron.0": first}, path, metadata)
    with pytest.raises(CofituneError, match=r"is damaged .*ffn\.neuron\.1"):
        Importance.load(path)
    save_file({f"ffn.neuron.{layer}": first.clone() for layer in (0, 1, 7)}, path, metadata)
    with pytest.raises(CofituneError, match="holds 1 tensors that are no scores of its layers"):
        Importance.load(path)


def test_the_authors_files_are_for_layers_that_are_alike(tmp_path):
    with pytest.raises(CofituneError, match="the layers of this nemotron_h model have 0, "):
        import_authors_importance(tmp_path, resolve_layout(tiny_family("nemotron_h")))


def test_parts_that_train_change_no_importance_and_no_mask():
    model, batch = tiny_family("phi3"), make_batch()
    importance = compute_importance(model, [batch], proxy="task_nll", base=BASE)
    region = Region.parse("attn.q+ffn.up@all")
    masks = importance.masks(model, region, "rank")
    names = {name for name, _ in region.apply(model)}
    again = compute_importance(model, [batch], proxy="task_nll", base=BASE)
    assert all(torch.equal(scores, again.scores[kind]) for kind, scores in importance.scores.items())
    assert masks.keys() == again.masks(model, region, "rank").keys() == names


def test_a_block_that_layers_share_is_masked_where_it_matters_most():
    model = tiny_family("zamba2")
    importance = compute_importance(model, [make_batch()], proxy="task_nll", base=BASE)
    cell = resolve_layout(model).at(1, "ffn.down")[0]
    assert cell.shared == (3,)
    mask = importance.masks(model, "full", "rank")[cell.parameter]
    ranks = importance.normalized("rank")[NEURON]
    torch.testing.assert_close(mask[0], 1 - torch.maximum(ranks[1], ranks[3]))


def test_what_cannot_be_measured_is_refused():
    batch = make_batch()
    with pytest.raises(CofituneError, match="No layer of region 'full' has units of the kind"):
        compute_importance(tiny_family("mamba"), [batch], proxy="task_nll", base=BASE)


@pytest.mark.parametrize("family", ["nemotron_h", "falcon", "zamba2", "jetmoe"])
def test_the_proxy_with_dropout_in_families_without_dropout_on_probabilities(family):
    importance = compute_importance(tiny_family(family), [make_batch()], base=BASE)
    assert all((row > 0).any() for scores in importance.scores.values() for row in scores if len(row))


def test_mixers_get_no_mask_and_the_log_says_so(caplog):
    model = tiny_family("qwen3_5_text")
    importance = compute_importance(model, [make_batch()], proxy="task_nll", base=BASE)
    masks = importance.masks(model, "all@all", "rank")
    assert "Weights of mix.in, mix.out have no units, so no mask damps them." in caplog.text
    layout = resolve_layout(model)
    without = {cell.parameter for cell in layout.cells if cell.role.startswith("mix.")}
    assert without and not without & set(masks)
