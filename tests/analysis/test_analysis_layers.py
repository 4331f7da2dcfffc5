"""The lens and the contributions against the model's own logits and states, element by element, for every family."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from families import tiny_family
from head_cases import make_model
from tiny import make_tiny_model

from cofitune_fast.analysis.direct import direct_contributions
from cofitune_fast.analysis.readout import Lens, Readout, read_lens
from cofitune_fast.analysis.stream import read_stream
from cofitune_fast.data import Encoded, collate
from cofitune_fast.errors import CofituneError
from cofitune_fast.regions import resolve_layout

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def shaken(family: str, **overrides):
    """A tiny model whose norms and head are no longer what initialisation made them, so that each of them counts."""
    model = make_tiny_model(family, tie_word_embeddings=False, **overrides)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def batch():
    rows = [Encoded([5, 9, 17, 30, 41, 2], 3), Encoded([7, 8, 100, 2], 2), Encoded([9, 11, 12, 13, 14, 15, 200, 2], 4)]
    return collate(rows, 0)


def read(model):
    layout = resolve_layout(model)
    with torch.no_grad():
        return Readout(model, layout), read_stream(model, layout, batch())


def own(model):
    """The model's logits and all its states at the positions that predict a response token."""
    given = batch()
    with torch.no_grad():
        output = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"], output_hidden_states=True)
    chosen = given["labels"][:, 1:] != -100
    return output.logits[:, :-1][chosen], [state[:, :-1][chosen] for state in output.hidden_states]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_states_and_the_last_reading_are_the_models_own(family):
    model = shaken(family)
    readout, stream = read(model)
    logits, states = own(model)
    assert len(stream.states) == 5
    for mine, theirs in zip(stream.states[:-1], states[:-1], strict=True):  # theirs is normed after the last layer
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(readout.norm(stream.states[-1]), states[-1], **CLOSE)
        torch.testing.assert_close(readout.logits(stream.states[-1]), logits, **CLOSE)
    torch.testing.assert_close(stream.logits, logits[0], **CLOSE)
    assert stream.rows.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert stream.targets.tolist() == [30, 41, 2, 100, 2, 14, 15, 200, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_modules_wrote_adds_up_to_the_last_state(family):
    _, stream = read(shaken(family))
    assert len(stream.attention) == len(stream.ffn) == 4
    torch.testing.assert_close(stream.states[0] + sum(stream.attention) + sum(stream.ffn), stream.states[-1], **CLOSE)
    for layer in range(4):
        torch.testing.assert_close(
            stream.states[layer] + stream.attention[layer] + stream.ffn[layer], stream.states[layer + 1], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_contributions_add_up_to_the_lead_over_the_rival(family):
    model = shaken(family)
    readout, stream = read(model)
    cap = readout.head.softcap
    readout.head = dataclasses.replace(readout.head, softcap=None)  # contributions are to the logits before the cap
    assert (cap is not None) == (family == "gemma2")
    with torch.no_grad():
        logits = readout.logits(stream.states[-1])
        rivals = torch.arange(len(stream.targets)) * 7 + 3
        contributions = direct_contributions(readout, stream, rivals)
    assert contributions.shape == (9, 10)
    lead = logits.gather(1, stream.targets[:, None]) - logits.gather(1, rivals[:, None])
    torch.testing.assert_close(contributions.sum(1, keepdim=True), lead, **CLOSE)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_lens_is_log_softmax_and_rank_of_each_layers_reading(family, monkeypatch):
    monkeypatch.setattr("cofitune_fast.analysis.readout.CHUNK_BYTES", 4 * 260 * 2)  # two positions at a time
    model = shaken(family)
    readout, stream = read(model)
    assert readout.chunk == 2
    with torch.no_grad():
        lens = read_lens(readout, stream)
        final = readout.logits(stream.states[-1])
        for depth, state in enumerate(stream.states):
            logits = readout.logits(state)
            nll = torch.nn.functional.cross_entropy(logits, stream.targets, reduction="none")
            torch.testing.assert_close(lens.nll[:, depth], nll, **CLOSE)
            order = logits.argsort(1, descending=True)
            rank = (order == stream.targets[:, None]).int().argmax(1) + 1
            assert lens.rank[:, depth].tolist() == rank.tolist()
            kl = torch.nn.functional.kl_div(
                logits.log_softmax(1), final.log_softmax(1), reduction="none", log_target=True).sum(1)
            torch.testing.assert_close(lens.kl[:, depth], kl, **CLOSE)
        final.scatter_(1, stream.targets[:, None], float("-inf"))
    assert lens.rivals.tolist() == final.argmax(1).tolist()


def test_readable_is_the_first_layer_from_which_the_token_stays_on_top():
    rank = torch.tensor([[1, 1, 1], [1, 2, 1], [5, 1, 1], [1, 1, 2], [4, 3, 2]], dtype=torch.int32)
    lens = Lens(torch.zeros(5, 3), rank, torch.zeros(5, 3), torch.zeros(5, dtype=torch.long))
    assert lens.readable().tolist() == [0, 2, 1, 3, 3]


def test_bfloat16_adds_up_but_for_its_rounding():
    model = shaken("qwen3", num_hidden_layers=4).to(torch.bfloat16)
    readout, stream = read(model)
    with torch.no_grad():
        rivals = torch.zeros_like(stream.targets)
        contributions = direct_contributions(readout, stream, rivals)
        directions = readout.directions(stream.states[-1], stream.targets, rivals)
    torch.testing.assert_close(contributions.sum(1), (stream.states[-1].float() * directions).sum(1), **CLOSE)
    assert stream.remainder().abs().max() > 0


def test_states_that_do_not_add_up_are_refused():
    model = shaken("llama")
    model.model.layers[2].register_forward_hook(lambda module, inputs, output: output * 3)
    with pytest.raises(CofituneError, match=r"model type 'llama' are not residual .* cannot be analysed"):
        read(model)


@torch.no_grad()
def test_a_scale_of_the_logits_is_read_and_counts_in_the_contributions():
    model = make_model("granite")
    readout, stream = read(model)
    readout.check(stream)
    own_logits, _ = own(model)
    rivals = torch.arange(len(stream.targets)) * 7 + 3
    lead = own_logits.gather(1, stream.targets[:, None]) - own_logits.gather(1, rivals[:, None])
    torch.testing.assert_close(direct_contributions(readout, stream, rivals).sum(1, keepdim=True), lead, **CLOSE)


def test_a_last_reading_that_is_not_the_models_own_is_refused():
    model = shaken("llama")
    readout, stream = read(model)
    stream.logits = stream.logits * 0.5
    with torch.no_grad(), pytest.raises(CofituneError, match="does more to its last state"):
        readout.check(stream)


def test_a_final_norm_that_is_no_rms_norm_is_refused():
    model = shaken("llama")
    readout, stream = read(model)
    readout.norm = torch.nn.LayerNorm(32)
    with torch.no_grad(), pytest.raises(CofituneError, match="not an RMS norm"):
        readout.directions(stream.states[-1], stream.targets, stream.targets - 1)


@pytest.mark.parametrize("family", ["qwen3_5_text", "qwen3_moe", "phi3", "lfm2", "granite"])
@torch.no_grad()
def test_mixers_and_experts_write_to_the_stream_as_attention_and_ffn_do(family):
    model = tiny_family(family)
    readout, stream = read(model)
    logits, states = own(model)
    for mine, theirs in zip(stream.states[:-1], states[:-1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    torch.testing.assert_close(readout.logits(stream.states[-1]), logits, **CLOSE)


@pytest.mark.parametrize("family", [
    "nemotron_h", "gemma3n_text", "zamba2", "hrm_text", "gpt_neox", "falcon_h1",
])
def test_what_is_not_a_sum_of_attention_and_ffn_is_refused(family):
    model = tiny_family(family)
    with pytest.raises(CofituneError, match=f"odel type '{family}'.*cannot be (analysed|told apart|read)"):
        readout, stream = read(model)
        readout.check(stream)
        direct_contributions(readout, stream, stream.targets)
