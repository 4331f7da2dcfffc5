"""Speed features of every family: which are on, and that losses and gradients with them are those without."""

import logging
from contextlib import nullcontext

import pytest
import torch
from families import CHOSEN, FAMILIES, tiny_config, tiny_family
from tiny import make_tiny_model
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from cofitune_fast.data import Encoded
from cofitune_fast.errors import CofituneError
from cofitune_fast.memory.abilities import (
    _padded_batch,
    _trie,
    abilities,
    abilities_line,
    frozen_prefix,
    prefix_abilities,
    takes_tries,
    trie_ability,
)
from cofitune_fast.memory.cached_prefix import open_prefix
from cofitune_fast.memory.gradient_release import GradientRelease
from cofitune_fast.memory.host_states import HostMaskedAdamW
from cofitune_fast.memory.prefix_cache import PlacedRow
from cofitune_fast.memory.settings import MemorySettings
from cofitune_fast.models.attention import longest_row, trie_attention
from cofitune_fast.models.fingerprint import tensor_digests
from cofitune_fast.optim import MaskedAdamW
from cofitune_fast.planning.planner import fake_model
from cofitune_fast.regions import Region, resolve_layout
from cofitune_fast.scoring import answer_scores

LAYER = 2  # the lowest trained layer, of four
OFF = {  # all families that are in no list have the feature
    "prefix cut": {"hrm_text"},
    "prefix cache": {
        "hrm_text", "gemma3n_text", "gemma4", "gemma4_text", "glm_moe_dsa", "hy_v4", "inkling2_text", "zaya"},
    "trie": {
        # linear attention, Mamba or convolution
        "bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "granitemoehybrid:dense",
        "inkling2_text", "inkling_text", "jamba", "kimi_linear", "lfm2", "lfm2_moe", "lfm2_vl", "lfm3", "mamba",
        "mamba2", "minimax", "nemotron_h", "nemotron_h:dense", "olmo_hybrid", "qwen3_5", "qwen3_5_moe",
        "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "qwen4_exp_text", "recurrent_gemma", "rwkv", "xlstm", "zamba",
        "zamba2", "zaya",
        # attention that is no SDPA of transformers, or that chooses its keys
        "axk2", "bloom", "codegen", "deepseek_v32", "deepseek_v4", "doge", "dots3_note_text", "falcon", "falcon:heads",
        "falcon:one-key", "flint", "gemma2", "glm_moe_dsa", "gpt_neo", "gpt_neox_japanese", "gpt_oss", "gptj",
        "granite_swa", "granitemoe_swa", "hy_v4", "llama4", "llama4_text", "mimo_v2_flash", "minimax_m3_vl_text",
        "mpt", "nemotron",
        "openai-gpt", "stablelm", "vaultgemma", "xglm"},
    "gradient checkpointing": {"ctrl", "gpt_neox_japanese", "jetmoe", "openai-gpt"},
}  # fmt: skip
BY_TRIAL = {"doge", "nemotron", "stablelm"}  # whose structure shows nothing against a trie


def ready(family):
    """A model without randomness whose layers from LAYER up are trained, its region, and the trained pairs."""
    model = tiny_family(family)
    layout = resolve_layout(model)
    low = min(LAYER, layout.num_layers - 1)
    region = Region.from_cells(
        cell for cell in layout.cells if cell.layer >= low and not cell.shared and cell.role != "ffn.router")
    trained = region.apply(model)
    return without_randomness(model).train(), region, trained


def without_randomness(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or "jitter" in name):
                setattr(module, name, 0.0)
    return model


def resolved(family):
    try:
        resolve_layout(tiny_family(family))
    except CofituneError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("family", CHOSEN)
def test_features_are_on_where_they_are_proven_and_change_no_loss_and_no_gradient(family):
    resolved(family)
    model, region, trained = ready(family)
    low = min(cell.layer for cell in region.cells(resolve_layout(model)))
    on = {name: bool(ability) for name, ability in abilities(model, low).items()}
    assert on == {name: family not in families for name, families in OFF.items()}

    call, real = _padded_batch(model)
    targets = torch.arange(int(real.sum()))

    def step(call, pick=lambda logits: logits[real]):
        loss = torch.nn.functional.cross_entropy(pick(model(**call, use_cache=False).logits), targets)
        return loss.detach(), torch.autograd.grad(loss, [parameter for _, parameter in trained])

    loss, gradients = step(call)
    size = max(gradient.norm() for gradient in gradients)

    def check(found, exact=False):
        tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-5 * size.item()}
        torch.testing.assert_close(found[0], loss, rtol=0 if exact else 1e-5, atol=0)
        for (name, _), one, other in zip(trained, found[1], gradients, strict=True):
            torch.testing.assert_close(one, other, **tolerance, msg=lambda text, name=name: f"{name}: {text}")

    prefix = frozen_prefix(model, region)
    with prefix or nullcontext():
        if prefix is not None:
            with prefix.keeping() as kept:
                check(step(call), exact=True)
        if on["prefix cache"]:
            states = kept[0].clone()
            states[~real] = 0  # as they come from the cache
            with prefix.replaced_by(states):
                check(step(call))
        if on["trie"]:
            trie = _trie(call, real)
            with trie_attention(model):
                check(step(trie, lambda logits: logits[0][trie["rows"]][real]))
        if on["gradient checkpointing"]:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.disable_input_require_grads()
            if prefix is not None:
                prefix.stop_checkpointing()
            check(step(call))


@pytest.mark.parametrize("family", [
    "llama", "gpt2", "gpt_neox", "falcon", "phi3", "mixtral", "gpt_oss", "deepseek_v3", "qwen3_5_text", "nemotron_h",
    "lfm2", "gemma4_text"])
def test_released_gradients_and_states_on_the_host_make_the_same_step(family):
    model, _, trained = ready(family)
    call, real = _padded_batch(model)
    before = [parameter.detach().clone() for _, parameter in trained]

    def stepped(kind):
        with torch.no_grad():
            for (_, parameter), value in zip(trained, before, strict=True):
                parameter.copy_(value)
        optimizer = (HostMaskedAdamW if kind == "host" else MaskedAdamW)(trained, lr=1e-2, max_grad_norm=None)
        backward = {"host": lambda loss: optimizer.backward(loss), "plain": torch.Tensor.backward}.get(kind)
        backward = backward or GradientRelease(optimizer, kind).backward
        for _ in range(2):
            backward(model(**call, use_cache=False).logits[real].logsumexp(-1).mean())
            optimizer.step()
            optimizer.zero_grad()
        return [parameter.detach().clone() for _, parameter in trained]

    expected = stepped("plain")
    assert not torch.equal(expected[0], before[0])
    for kind in ("exact", "lagged", "host"):
        for one, other in zip(stepped(kind), expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("family", [
    "llama", "gpt2", "gemma4_text", "qwen3_5_text", "gpt_oss", "deepseek_v32", "falcon", "zaya", "hrm_text",
    *sorted(BY_TRIAL)])
def test_a_plan_knows_the_features_without_values(family):
    if family not in FAMILIES:
        pytest.skip("not in this release of transformers")
    model = fake_model(tiny_config(family))
    off = {name for name, ability in abilities(model, LAYER).items() if not ability}
    if family == "gpt2":  # drops states in training unless its config says otherwise
        off.remove("prefix cache")
    assert off == {name for name, families in OFF.items() if family in families} - (
        {"trie"} if family in BY_TRIAL else set())


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "deepseek_v4", "nemotron_h", "gemma4_unified_text"])
def test_states_come_back_from_the_disk_as_they_were(family):
    if family not in FAMILIES:
        pytest.skip("not in this release of transformers")
    model, region = without_randomness(tiny_family(family)), Region.parse("all@2-3")
    opened, reason = open_prefix(model, region, tensor_digests(model), MemorySettings(), tokens=100)
    assert reason is None
    call, real = _padded_batch(model)
    rows = [PlacedRow(b"%016d" % index, row.nonzero().flatten() + 7 * index) for index, row in enumerate(real)]
    ran, logits = [], []
    block = next(module for module in resolve_layout(model).decoder_layer(1).modules() if not list(module.children()))
    block.register_forward_hook(lambda *_: ran.append(1))
    with opened, torch.no_grad():
        for _ in range(2):
            with opened.forward(call, rows) as given:
                logits.append(model(**given, use_cache=False).logits[real])
            times = ran.count(1)
    assert times == 1  # in the first forward alone
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-6)


def test_a_cache_belongs_to_the_positions_too():
    model, region = without_randomness(tiny_family("gpt2")), Region.parse("all@2-3")

    def folder():
        opened, _ = open_prefix(model, region, tensor_digests(model), MemorySettings(), tokens=100)
        with opened:
            return opened.cache.store.folder

    first = folder()
    with torch.no_grad():
        model.transformer.h[3].mlp.c_fc.weight.mul_(2)
    assert folder() == first
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(2)
    assert folder() != first


# The trial ------------------------------------------------------------------------------------------------------------


def test_it_finds_what_the_layers_above_need_beside_the_states(caplog):
    model, seen = make_tiny_model(), []
    plain = model.model.layers[0].mlp.forward
    model.model.layers[0].mlp.forward = lambda x: (seen.append(1.0), plain(x))[1]

    def add(layer, inputs, output):
        return output + 1e-4 * (seen.pop() if seen else 0.0)

    model.model.layers[3].mlp.register_forward_hook(add)
    with caplog.at_level(logging.WARNING, "cofitune_fast"):
        found = prefix_abilities(model, 2)
    assert found.cut and not found.cache
    assert caplog.messages == ["For this llama model the prefix cache is off: the layers above need more than the "
                               "states of those below."]
    assert prefix_abilities(model, 2) is found and len(caplog.messages) == 1


def test_it_finds_layers_that_run_twice_and_tokens_mixed_outside_of_attention():
    model = make_tiny_model()
    layers = model.model.layers
    twice = layers[1].forward
    layers[0].register_forward_hook(lambda layer, inputs, output: layers[1](output) * 0 + output)
    layers[1].forward = lambda states, **keywords: states if not keywords else twice(states, **keywords)
    assert "do not run once each" in prefix_abilities(model, 2).cut.why_not
    other = make_tiny_model()
    other.model.layers[1].mlp.register_forward_hook(lambda layer, inputs, output: output + output.roll(1, 1))
    assert trie_ability(other).why_not == "it gives another result than padded rows"
    assert not takes_tries(other, 2)


def with_layers(change, model=None):
    """A tiny Llama whose layers are of a class of their own; change(layer, states, arguments) -> states, arguments."""
    class Own(LlamaDecoderLayer):
        def forward(self, hidden_states, **arguments):
            hidden_states, arguments = change(self, hidden_states, arguments)
            return super().forward(hidden_states, **arguments)

    model = model or make_tiny_model()
    for layer in model.model.layers:
        layer.__class__ = Own
    return model


def without_rows(arguments):
    return {name: value for name, value in arguments.items() if name not in ("rows", "owners")}


@pytest.mark.parametrize("drops", [lambda layer: True, lambda layer: layer.training,
                                   lambda layer: layer is layer.above], ids=["always", "in training", "one layer"])
def test_a_layer_that_keeps_its_arguments_to_itself_takes_no_tries(drops):
    model = with_layers(lambda layer, states, given: (states, without_rows(given) if drops(layer) else given))
    for layer in model.model.layers:
        object.__setattr__(layer, "above", model.model.layers[2])
    assert "is not told which tokens are one row" in trie_ability(model).why_not
    assert not takes_tries(model, 2)


def test_an_attention_without_rows_is_refused_wherever_it_happens():
    model = with_layers(lambda layer, states, given: (states, without_rows(given) if states.shape[1] > 16 else given))
    assert takes_tries(model, 100)
    rows = [Encoded([*range(4, 24), last, last], 20) for last in (30, 31)]
    with pytest.raises(CofituneError, match=r"LlamaAttention is not told which tokens are one row.*memory\.packing"):
        answer_scores(model, rows, 0)
    with trie_attention(model):
        model(input_ids=torch.tensor([rows[0].input_ids]))  # no trie, so nothing is missing


def test_what_a_layer_does_in_training_alone_turns_features_off():
    noisy = with_layers(lambda layer, states, given: (
        torch.nn.functional.dropout(states, 0.1, layer.training), given))
    other = with_layers(lambda layer, states, given: (states * (1.01 if layer.training else 1), given))
    for model in (noisy, other):
        assert prefix_abilities(model, 2).cache.why_not == "the frozen layers do something else in training"
    assert trie_ability(noisy).why_not == "it gives another result than padded rows in training"
    assert trie_ability(other)


def test_tokens_that_see_later_ones_are_not_cached():
    model = make_tiny_model("gemma3", use_bidirectional_attention=True)
    able = prefix_abilities(model, 2)
    assert able.cut and able.cache.why_not == "its tokens see later ones"
    assert not trie_ability(model)


def test_an_error_of_the_model_turns_a_feature_off():
    model = make_tiny_model()

    def fail(*_):
        raise KeyError("sliding_attention")

    model.model.layers[3].register_forward_pre_hook(fail)
    assert prefix_abilities(model, 2).cut.why_not == "its trial raised KeyError"
    assert torch.is_grad_enabled()


def test_it_draws_no_random_number_and_leaves_the_model_as_it_was():
    model = make_tiny_model(attention_dropout=0.5).train()
    model.model.layers[1].eval()
    state, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    found = abilities(model)
    assert [name for name, ability in found.items() if not ability] == ["prefix cache"]
    assert "attention_dropout 0.5" in found["prefix cache"].why_not
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == "sdpa"


def test_rows_are_at_most_as_long_as_the_shortest_window():
    assert longest_row(make_tiny_model()) == float("inf")
    model = make_tiny_model("mistral", sliding_window=8)
    assert longest_row(model) == 8 and takes_tries(model, 8) and not takes_tries(model, 9)
    assert longest_row(tiny_family("llama4_text")) == 64  # chunks


def test_the_line_names_what_is_on_and_why_the_rest_is_off():
    assert abilities_line(make_tiny_model()) == "speed: prefix cut, prefix cache, trie, gradient checkpointing"
    assert abilities_line(make_tiny_model("gemma2")) == (
        "speed: prefix cut, prefix cache, gradient checkpointing | off: trie (its attention is eager, not sdpa)")
    assert "| off: prefix cache (later layers read the keys and values of layer 0)" in (
        abilities_line(tiny_family("gemma4_text")))
