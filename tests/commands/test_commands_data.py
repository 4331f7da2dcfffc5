"""`cofitune data`, and the look at the data before any weights are loaded."""

import io
import json
import warnings

import pytest
from rich.console import Console
from tiny import write_jsonl
from transformers import AutoTokenizer, GPT2Config

from cofitune_fast import load_model
from cofitune_fast.commands import setup
from cofitune_fast.commands.data import look_at
from cofitune_fast.config import load_config
from cofitune_fast.data import encode_examples, read_examples
from cofitune_fast.display.data import DataView
from cofitune_fast.errors import CofituneError
from cofitune_fast.training.schedule import refuse_standing_still
from cofitune_fast.trials import Workbench


def row(prompt, completion):
    return {"prompt": prompt, "completion": completion}


def arguments(values):
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


@pytest.fixture
def no_weights(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(setup, "load_model", refuse)


def test_the_look_counts_rows_tokens_and_what_stands_twice(tiny_run, tmp_path):
    train = [row("say a", "AA"), row("say b", "BB"), row("say a", "AA"), row("say a", "A"), row("say c", ""),
             row("p" * 90, "CC"), row("say d", "D" * 90)]
    write_jsonl(tmp_path / "train.jsonl", train)
    write_jsonl(tmp_path / "test.jsonl", [row("say b", "BB"), row("say d", "D"), row("say z", "ZZ")])
    write_jsonl(tmp_path / "test" / "knowledge" / "knowledge-test.jsonl", [
        {"query": "say a", "choices": ["A", "AA"], "gold": 1}, {"query": "say y", "choices": ["A", "B"], "gold": 0}])
    tiny_run.update({"data.max_length": 80})
    content = look_at(load_config(None, tiny_run), rows=2)

    where = [f"{tmp_path / 'train.jsonl'}:{number}" for number in range(1, 8)]
    look = content["files"]["train"]
    assert (look["rows"], look["good"], look["responses"]) == (7, 6, 6)
    assert [found for found in look["bad"].values()] == [{"count": 1, "first": [where[4]]}]
    # a byte is a token; the template writes <|im_start|>user\n ... <|im_end|>\n<|im_start|>assistant\n around a prompt
    around, kept = len("user\n") + len("\n") + len("assistant\n") + 3, [train[i] for i in (0, 1, 2, 3, 6)]
    prompts = [around + len(one["prompt"]) for one in kept]
    lengths = [around + len(one["prompt"]) + len(one["completion"]) + 1 for one in train if one["completion"]]
    assert look["prompt_tokens"] == sum(prompts)
    assert look["trained_tokens"] == 3 + 3 + 3 + 2 + (80 - prompts[4])
    assert (look["lengths"]["min"], look["lengths"]["max"]) == (min(lengths), max(lengths))
    assert sum(look["lengths"]["histogram"]["counts"]) == 6
    assert look["cut"] == {"count": 1, "first": [where[6]]} and look["dropped"] == {"count": 1, "first": [where[5]]}

    assert content["twice_in_train"]["exact"] == {"count": 1, "first": [[where[2], where[0]]]}
    assert content["twice_in_train"]["prompt"]["count"] == 2
    shared = {(one["part"], one["other"]): (one["exact"]["count"], one["prompt"]["count"])
              for one in content["overlaps"]}
    assert shared["test", "train"] == (1, 2)
    assert shared["versatility.test", "train"] == (1, 1)
    assert not content["usable"] and where[4] in content["problems"]["train"]


def test_the_trained_part_is_marked_without_and_with_colours(tiny_run):
    content = look_at(load_config(None, tiny_run), rows=1)
    (shown,) = content["shown"]
    segments = [(one["kind"], one["trained"]) for one in shown["segments"]]
    assert segments == [("prompt", False), ("trained", True), ("end", True)]
    answer = shown["segments"][1]["text"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_run["model"])
    rows = encode_examples(read_examples(tiny_run["data.train"]), tokenizer)
    assert "".join(one["text"] for one in shown["segments"]) in [tokenizer.decode(one.input_ids) for one in rows]

    def drawn(**options):
        out = io.StringIO()
        Console(file=out, width=200, **options).print(DataView(content), soft_wrap=True)
        return out.getvalue()

    assert f"assistant\n»{answer}¦<|im_end|>«" in drawn()
    assert f"»{answer}¦<|im_end|>«" in drawn(force_terminal=True, no_color=True)
    coloured = drawn(force_terminal=True, color_system="truecolor")
    assert "»" not in coloured and f"\x1b[1;32m{answer}\x1b[0m" in coloured


def test_a_thought_is_told_from_the_answer(tiny_run, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [row("say a", "<think>\nb?\n</think>\nAA")])
    (shown,) = look_at(load_config(None, tiny_run), rows=1)["shown"]
    assert [(one["kind"], one["text"]) for one in shown["segments"][1:]] == [
        ("thought", "<think>\nb?\n</think>\n"), ("trained", "AA"), ("end", "<|im_end|>")]


def test_the_command_says_whether_the_data_can_be_used(command_line, tiny_run, tmp_path, no_weights):
    assert command_line("data", *arguments(tiny_run))[0] == 0
    status, out, _ = command_line("data", "--data.train", tiny_run["data.train"], "--json")
    content = json.loads(out)
    assert status == 0 and content["model"] is None and "lengths" not in content["files"]["train"]
    write_jsonl(tmp_path / "train.jsonl", [row("say a", "A"), row("say b", "")])
    status, out, _ = command_line("data", *arguments(tiny_run))
    assert status == 2 and "train cannot be used" in out
    status, out, _ = command_line("data", *arguments(tiny_run), "--data.on_bad_row", "skip")
    assert status == 0 and "1 row" in out
    assert command_line("data")[0] == 2


@pytest.mark.parametrize("command", ["train", "search", "run", "evaluate", "importance"])
def test_bad_rows_are_refused_before_weights_are_loaded(command, command_line, tiny_run, tmp_path, no_weights):
    part = "test" if command == "evaluate" else "train"
    good = [row("say a", "A")] * 4
    write_jsonl(tmp_path / f"{part}.jsonl", [*good, row("say b", ""), row("", "C")])
    status, _, err = command_line(command, *arguments(tiny_run))
    assert status == 2 and "2 of 6 rows" in err and f"{part}.jsonl:5" in err and f"{part}.jsonl:6" in err


def test_a_wrong_argument_comes_before_the_files_and_a_file_before_the_tokenizer(
    command_line, tiny_run, monkeypatch, no_weights
):
    monkeypatch.setattr(setup, "load_outline", lambda *args, **kwargs: pytest.fail("the tokenizer was loaded"))
    tiny_run["data.train"] = "nowhere.jsonl"
    for command in ("train", "search", "run"):
        status, _, err = command_line(command, *arguments(tiny_run), "--training.learnig_rate", "1e-4")
        assert status == 2 and "learnig_rate" in err
        status, _, err = command_line(command, *arguments(tiny_run))
        assert status == 2 and "nowhere.jsonl" in err


def test_the_rows_of_the_look_are_trained_and_their_cut_is_one_calm_line(command_line, tiny_run, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [row(f"say {i}", "A" * (60 if i == 3 else 2)) for i in range(8)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_run["data.max_length"] = 64
        settings = load_config(None, tiny_run)
        (look,) = setup.look_before(settings, ["train"], say=(lines := []).append)
        bench = setup.make_workbench(settings, looks=[look])
    assert bench.train_rows is look.files["train"].encoded
    # 24 tokens around each prompt of 5; the responses have 2 bytes and the end of turn, one is cut at 64
    assert lines == [f"{tmp_path / 'train.jsonl'}: 8 rows, 61 trained tokens of 253; "
                     "1 response cut at max_length 64"]


def test_a_token_beyond_the_embedding_is_named_with_both_sizes(command_line, tiny_run, tmp_path, no_weights):
    tokenizer = AutoTokenizer.from_pretrained(tiny_run["model"])
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tiny_run["model"])
    assert command_line("data", *arguments(tiny_run))[0] == 0  # a token that no row uses does no harm
    write_jsonl(tmp_path / "train.jsonl", [row("say a", "A"), row("say b", "<new>")])
    status, _, err = command_line("train", *arguments(tiny_run))
    assert status == 2
    assert "train.jsonl:2 has the token '<new>' with the id 260" in err and "260 rows" in err and "261 tokens" in err


def test_the_live_embedding_is_checked_too_and_a_pad_token_beyond_it_is_not_used(tiny_run, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_run["model"])
    tokenizer.add_special_tokens({"pad_token": "<other pad>"})
    tokenizer.save_pretrained(tiny_run["model"])
    loaded = load_model(tiny_run["model"])
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id == 2
    write_jsonl(tmp_path / "train.jsonl", [row("say a", "<other pad>")])
    bench = Workbench(loaded, setup.trial_data(load_config(None, tiny_run)))
    with pytest.raises(CofituneError, match=r"'<other pad>' with the id 260.*260 rows"):
        bench.train_rows  # noqa: B018  (encodes the rows)


def test_rows_beyond_the_positions_are_told_or_refused_where_the_model_has_a_table(
    command_line, tiny_run, tmp_path, no_weights
):
    write_jsonl(tmp_path / "train.jsonl", [row("say a", "A" * 600)] * 3)
    status, out, _ = command_line("data", *arguments(tiny_run), "--data.max_length", "560")
    assert status == 0 and "3 rows longer than the model's positions" in out
    GPT2Config(vocab_size=260, n_positions=512, n_embd=32, n_layer=1, n_head=4).save_pretrained(tiny_run["model"])
    status, _, err = command_line("train", *arguments(tiny_run), "--data.max_length", "560")
    assert status == 2 and "512 positions" in err and "data.max_length to at most 512" in err
    assert command_line("data", *arguments(tiny_run), "--data.max_length", "512")[0] == 0


def test_a_test_file_of_choices_is_no_file_of_bad_rows(tiny_run, tmp_path):
    write_jsonl(tmp_path / "test.jsonl", [{"query": f"say {i}", "choices": ["a", "b"], "gold": 0} for i in range(3)])
    content = look_at(load_config(None, tiny_run), rows=0)
    assert content["usable"] and content["files"]["test"]["format"] == "choice"


def test_a_first_rung_at_a_rate_of_0_is_refused_before_weights_are_loaded(command_line, tiny_run, no_weights):
    tiny_run.update({"training.num_train_epochs": 1, "training.warmup_steps": 0.03})  # 16 rows in batches of 8
    status, _, err = command_line("search", *arguments(tiny_run))
    assert status == 2 and "first rung, 0.125 of 2 steps" in err and "learning rate of 0" in err


@pytest.mark.parametrize(("training", "rows", "fraction", "refused"), [
    ({}, 16, 0.125, True),
    ({}, 16, 1.0, False),
    ({}, 8, 1.0, True),
    ({"warmup_steps": 0}, 8, 1.0, False),
    ({"lr_scheduler_type": "constant"}, 8, 1.0, False),  # it has no warm-up
    ({}, 160, 0.125, False),  # 3 of 20 steps
])
def test_a_training_that_moves_nothing(training, rows, fraction, refused):
    if refused:
        with pytest.raises(CofituneError, match="learning rate of 0"):
            refuse_standing_still(training, rows, fraction)
    else:
        refuse_standing_still(training, rows, fraction)
