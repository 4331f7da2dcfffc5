"""`cofitune plan` as a user types it."""

import json
from pathlib import Path

import pytest
import yaml

from cofitune_fast.commands.plan import plan_run
from cofitune_fast.config import load_config, parse_overrides
from cofitune_fast.regions import DEFAULT_REGION

REGION = "ffn.up+ffn.down@25%-50%"
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000}
LAYOUTS = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8},
}
MACHINE = ("--plan.flops", "400e12", "--plan.bandwidth", "3.0e12")


@pytest.fixture
def plan(command_line):
    return lambda *argv: command_line("plan", *argv)


@pytest.fixture
def folder(tmp_path):
    def make(layout):
        path = tmp_path / layout
        path.mkdir()
        (path / "config.json").write_text(json.dumps({**LLAMA, **LAYOUTS[layout]}))
        return path

    return make


def test_the_table(plan, tiny_run):
    status, out, _ = plan("--model", tiny_run["model"], "--region", "ffn.up@50%-100%", "--data.max_length", "16",
                          "--plan.rows", "1000")
    assert status == 0
    for word in ("ffn.up@50%-100%", "8 x 16 tokens", "frozen weights", "activations", "peak", "on disk", "1000 rows",
                 "time per step", "measured here"):
        assert word in out


def test_settings_come_from_the_configuration(plan, tiny_run, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({
        "model": {"path": tiny_run["model"], "quantize": "nf4"}, "region": "ffn@2", "data": {"max_length": 32},
        "training": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3,
                     "gradient_checkpointing": True},
        "memory": {"optimizer_states": "host", "prefix_cache": "off"}, "storage": "bf16",
        "plan": {"response_length": 5}, "mask": "none", "anchor": {"weight": 0.5, "rows": 2},
    }))
    status, out, _ = plan("--config", tmp_path / "run.yaml", "--json", *MACHINE)
    content = json.loads(out)
    assert status == 0 and content["settings"] == {
        "batch_size": 6, "length": 32, "response_length": 5, "storage": "bf16", "masked": False,
        "gradient_checkpointing": True, "gradient_release": "off", "optimizer_states": "host", "quantize": "nf4",
        "prefix": "computed", "prefix_weights": "device", "accumulation": 3, "anchor_rows": 2, "own_memory": True,
    }
    assert content["rates"]["source"] == "given" and content["time"]["optimizer"] is None


def test_the_settings_that_fit_are_ready_for_the_yaml_and_the_command_line(plan, folder):
    where = ("--model", str(folder("7b")), "--region", REGION, *MACHINE)
    chosen, text = plan_run(load_config(None, parse_overrides(list(where))), "12GiB")
    assert "Next best" in text
    block = yaml.safe_load(text.partition("\n")[2].partition("\n\n")[0])
    assert {f"{section}.{key}" for section, keys in block.items() if isinstance(keys, dict) for key in keys} == {
        key for key in chosen["fit"]["settings"] if "." in key}
    assert block["storage"] == chosen["fit"]["settings"]["storage"]
    options = [part for key, value in chosen["fit"]["settings"].items() for part in (f"--{key}", str(value).lower())]
    status, out, _ = plan(*where, *options, "--json")
    again = json.loads(out)
    assert status == 0 and again["settings"] == chosen["settings"]
    assert 4e9 < again["need"] == chosen["need"] <= 12 * 2**30


@pytest.mark.parametrize(("dtype", "storage"), [("float32", "fp32"), ("bfloat16", "bf16_sr")])
def test_the_dtype_is_the_one_the_model_will_be_loaded_in(plan, tiny_run, dtype, storage):
    path = Path(tiny_run["model"]) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": dtype}))
    status, out, _ = plan("--model", tiny_run["model"], "--region", "ffn@2", "--json", *MACHINE)
    assert status == 0 and json.loads(out)["settings"]["storage"] == storage


def test_a_budget_that_nothing_fits(plan, folder):
    status, out, err = plan("--model", folder("70b"), "--region", REGION, "--fit", "24GiB", *MACHINE)
    assert status == 2 and out == ""
    assert err.startswith("cofitune: Nothing fits into 24.00 GiB: nearest is --training.per_device_train_batch_size 1")
    assert "--model.quantize nf4" in err and "its weights alone take" in err


def test_a_budget_that_a_shorter_length_would_meet(plan, folder):
    model = folder("7b")
    where = ("--model", model, "--region", REGION, "--training.per_device_train_batch_size", "1", *MACHINE)
    status, _, err = plan(*where, "--data.max_length", "16384", "--fit", "7.2GiB")
    assert status == 2 and "with data.max_length " in err and err.endswith(" that fits.")


@pytest.mark.parametrize(("argv", "said"), [
    (("--fit", "24XB"), "--fit is '24XB'; write a size such as"),
    (("--fit", "0GiB"), "--fit is '0GiB'"),
    (("--training.per_device_train_batch_size", "0"), "training.per_device_train_batch_size is 0"),
    (("--memory.gradient_release", "exact", "--training.gradient_accumulation_steps", "2"), "release goes neither"),
    (("--plan.flops", "-1"), "plan.flops in the command line is wrong"),
    (("--plan.flop", "1"), "did you mean plan.flops?"),
    (("--memory.gradient_release", "sometimes"), "memory.gradient_release in the command line is wrong"),
])
def test_a_wrong_setting_gets_one_sentence(plan, tiny_run, argv, said):
    status, out, err = plan("--model", tiny_run["model"], "--region", "ffn@2", *argv)
    assert status == 2 and out == "" and said in err


def test_without_a_model_and_without_a_region(plan, tiny_run):
    status, _, err = plan("--region", "ffn@2")
    assert status == 2 and "needs model" in err
    run = ("--model", tiny_run["model"], "--data.max_length", "64", *MACHINE)
    assert plan(*run)[1] == plan(*run, "--region", DEFAULT_REGION)[1] != plan(*run, "--region", "ffn@0")[1]


def test_the_recipe_for_13b_fits_a_card_of_24_gib(plan, folder):
    recipe = Path(__file__).parents[2] / "examples" / "13b_single_gpu" / "run.yaml"
    status, out, _ = plan("--config", recipe, "--model.path", folder("13b"), "--json", *MACHINE)
    content = json.loads(out)
    assert status == 0 and content["trained_parameters"] == 20 * 5120 * 13824
    assert max(content["peak"], content["filling"]) < 24 * 2**30
