"""Roles on the command line: `cofitune env --model` shows them, and model.roles gives those that cannot be seen."""

from __future__ import annotations

import copy
import json

import pytest
from families import tiny_family
from tiny import make_tiny_tokenizer

from cofitune_fast.config import load_config
from cofitune_fast.models import load_model
from cofitune_fast.planning import fake_model
from cofitune_fast.regions import resolve_layout

ROLES = {"attn.q": "multi_head_attention.Wq", "ffn.up": ["ffn.0"], "ffn.down": "ffn.2[0:16/32]"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """CTRL, some of whose projections are given roles by hand."""
    path = tmp_path_factory.mktemp("ctrl")
    tiny_family("ctrl").save_pretrained(path)
    make_tiny_tokenizer().save_pretrained(path)
    return path


def test_each_kind_of_layer_has_its_roles(tmp_path, command_line):
    tiny_family("qwen3_5_text").save_pretrained(tmp_path)
    kinds = json.loads(command_line("env", "--model", tmp_path, "--json")[1])["kinds"]
    assert [kind["layers"] for kind in kinds] == ["0,2", "1,3"]
    assert kinds[0]["no_role"] == ["linear_attn.conv1d"] and kinds[1]["no_role"] == []
    assert kinds[0]["roles"]["mix.out"] == ["linear_attn.out_proj"]
    assert kinds[1]["roles"]["attn.gate"] == ["self_attn.q_proj[16:32/32]"]
    text = command_line("env", "--model", tmp_path)[1]
    assert "layers 0,2\n  mix.in      linear_attn.in_proj_qkv, " in text
    assert "\n  no role     linear_attn.conv1d; frozen unless the region is full\n" in text


def test_given_roles_reach_the_model_the_plan_and_a_copy(folder, command_line):
    _, shown, _ = command_line("env", "--model", folder, "--model.roles", json.dumps(ROLES), "--json")
    content = json.loads(shown)
    assert content["kinds"][0]["roles"] == {
        "attn.q": ["multi_head_attention.Wq"], "attn.k": ["multi_head_attention.Wk"],
        "attn.v": ["multi_head_attention.Wv"], "attn.o": ["multi_head_attention.dense"],
        "ffn.up": ["ffn.0"], "ffn.down": ["ffn.2[0:16/32]"]}
    given = load_config(None, {"model": str(folder), "model.roles.ffn.up": "ffn.0"}).model.roles
    assert given == {"ffn.up": "ffn.0"}
    loaded = load_model(folder, roles=ROLES).model
    for model in (fake_model(folder, roles=ROLES), loaded, copy.deepcopy(loaded)):
        (down,) = resolve_layout(model).at(1, "ffn.down")
        assert (down.part.start, down.part.stop, down.part.period) == (0, 16, 32)


@pytest.mark.parametrize(("roles", "message"), [
    ("{ffn.upp: ffn.0}", "model.roles names the role 'ffn.upp'; known are "),
    ("{ffn.up: mlp.fc1}", "model.roles.ffn.up names mlp.fc1, which no layer of this ctrl model has"),
    ("{ffn.up: 'ffn.0[0:400]'}", "model.roles.ffn.up is 'ffn.0[0:400]', but ffn.0 has 96 rows"),
    ("{ffn.up: 'ffn.0['}", "model.roles.ffn.up is 'ffn.0['; write a weight's place in its layer"),
    ("[ffn.0]", "model.roles in the command line is wrong"),
])
def test_wrong_roles(folder, command_line, roles, message):
    status, _, error = command_line("plan", "--model", folder, "--model.roles", roles)
    assert status == 2 and f"cofitune: {message}" in error
