"""`cofitune evaluate --against` and `cofitune export`: any two models item by item, and a delta as a PEFT adapter."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch
from tiny import make_tiny_model, make_tiny_tokenizer

from cofitune_fast.models import load_model
from cofitune_fast.regions import BaseInfo, save_delta


def arguments(settings):
    return [word for key, value in settings.items() if key.startswith(("model", "data", "versatility"))
            for word in (f"--{key}", str(value))]


@pytest.fixture
def other(tmp_path):
    """A model of another vocabulary, whose tokenizer writes AA as one token, with another template."""
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_tokens(["AA", "HH"])
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "[").replace("\\n", "]")
    for owner in (make_tiny_model(seed=4, vocab_size=262), tokenizer):
        owner.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


@pytest.fixture
def delta(tmp_path, tiny_model_folder):
    model = load_model(tiny_model_folder, device="cpu").model
    info = BaseInfo.of(model, str(tiny_model_folder))
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.mul_(-9)
    return save_delta(model, "ffn@2", tmp_path / "delta", base=info)


def test_two_models_of_their_own_are_compared_item_by_item(command_line, tiny_run, other, delta):
    first, second = (json.loads(command_line("evaluate", *arguments({**tiny_run, "model": model}), *more, "--json")[1])
                     for model, more in ((tiny_run["model"], ("--delta", delta)), (other, ())))
    status, out, err = command_line("evaluate", *arguments(tiny_run), "--delta", delta, "--against", other, "--json")
    assert status == 0, err
    content = json.loads(out)
    against = content.pop("against")
    assert content.pop("resolution") != first.pop("resolution") and content == first and against["scores"] == second
    assert against["models"] == [f"{tiny_run['model']} + {delta}", str(other)]
    for group in ("knowledge", "reasoning"):
        (name,) = against["tasks"][group]
        one = against["tasks"][group][name]
        scores = [entry["tasks"][group][name]["value"] for entry in (first, second)]
        assert [one["first"], one["second"]] == scores and one["value"] == scores[0] - scores[1] and not one["per_byte"]
        assert one["flips"]["wrong_to_right"] - one["flips"]["right_to_wrong"] == round(4 * one["value"])
    assert against["tasks"]["speciality"]["speciality-test"]["per_byte"]  # AA is one token or two
    assert [note.split(";")[0] for note in against["notes"][:2]] == [
        "The two models have different tokenizers", "The two models have different chat templates"]
    assert "per byte of the answers: speciality-test" in against["notes"][2]
    assert len(against["flipped"]) == sum(against["flips"]["all"][way] for way in ("right_to_wrong", "wrong_to_right"))

    status, out, err = command_line("evaluate", *arguments(tiny_run), "--delta", delta, "--against", other,
                                    "--show-flips", 1)
    lines = out.splitlines()
    assert f"B  {other}" in lines and next(line.split()[:3] for line in lines if "Stderr" in line) == [
        "Group", "Task", "Metric"]
    header, *means = (line for line in lines if line.split()[:1] in (["Group"], ["vers"], ["uni"]))
    assert len(means) == 2 and all(len(line) < len(header) for line in means)  # without p, the last column
    shown = [line for line in lines if line.startswith(("lost  ", "gained  "))]
    assert len(shown) == min(1, len(against["flipped"]))


def test_the_same_model_with_and_without_a_delta_on_the_speciality_alone(command_line, tiny_run, delta):
    data = ("--model", tiny_run["model"], "--data.test", tiny_run["data.test"])
    status, out, err = command_line("evaluate", *data, "--against-delta", delta, "--json")
    assert status == 0, err
    against = json.loads(out)["against"]
    assert "differences" not in against and against["notes"] == [] and against["flips"]["all"]["items"] == 4
    forward = against["tasks"]["speciality"][tiny_run["data.test"]]["value"]
    back = json.loads(command_line("evaluate", *data, "--delta", delta, "--against", tiny_run["model"], "--json")[1])
    assert back["against"]["tasks"]["speciality"][tiny_run["data.test"]]["value"] == -forward != 0
    for more, words in ((("--against-base", "--delta", delta, "--versatility.test", tiny_run["versatility.test"]),
                         "--against-base and --against exclude"),
                        (("--harness", "arc_easy"), "--harness has no scores item by item"),
                        ((), "No model at ./none: the folder does not exist")):
        status, out, err = command_line("evaluate", *data, "--against", "./none", *more)
        assert status == 2 and out == "" and words in err


@pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")
def test_a_delta_becomes_an_adapter_that_is_a_base(command_line, tiny_run, delta, tmp_path, monkeypatch):
    monkeypatch.setenv("COFITUNE_CACHE", str(tmp_path / "cache"))
    adapter = tmp_path / "adapter"
    said = ("export", "--model", tiny_run["model"], "--delta", delta)
    status, out, err = command_line(*said, "--output", adapter, "--as", "peft")
    assert status == 0 and out == f"{adapter}\n" and "bit for bit" in err
    data = ("--data.test", tiny_run["data.test"], "--json")
    status, out, err = command_line("evaluate", "--model", adapter, *data)
    assert status == 0 and f"{adapter} is an adapter (LORA): it is merged into its base {tiny_run['model']}" in err
    assert json.loads(out) == json.loads(command_line("evaluate", "--model", tiny_run["model"], "--delta", delta,
                                                      *data)[1])
    status, out, err = command_line(*said, "--output", tmp_path / "small", "--rank", 2, "--json")
    content = json.loads(out)
    assert status == 0 and content["form"] == "lora" and not content["exact"]
    assert f"leaves out {content['error']:.2%} of the change" in err
    status, _, err = command_line(*said, "--output", tmp_path / "x", "--as", "gguf")
    assert status == 2 and "--as is 'gguf'; the known format is peft." in err
