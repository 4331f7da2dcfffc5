"""The run's configuration: defaults, overrides on top of the YAML, and one sentence for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from cofitune_fast.anchor import NO_ANCHOR, AnchorSettings
from cofitune_fast.config import PRESETS as RUN_PRESETS
from cofitune_fast.config import Preset as RunPreset
from cofitune_fast.config import load_config, parse_overrides
from cofitune_fast.errors import CofituneError
from cofitune_fast.importance import PRESETS, PresetName
from cofitune_fast.memory import MemorySettings
from cofitune_fast.ops._adamw_call import MASK_MODES, MaskMode
from cofitune_fast.ops._storage import STORAGES, StorageName
from cofitune_fast.scoring.tasks import METRICS, ResponseMetric
from cofitune_fast.search import SearchSettings
from cofitune_fast.trials import TrialData
from cofitune_fast.trials.priors import PriorName, make_prior


@pytest.fixture
def read(tmp_path):
    """The configuration of a YAML text (None: no file) and of command-line arguments."""
    def run(text=None, *arguments):
        path = None
        if text is not None:
            path = tmp_path / "run.yaml"
            path.write_text(text, encoding="utf-8")
        return load_config(path, parse_overrides(list(arguments)))

    return run


def wrong(read, words, text=None, *arguments):
    with pytest.raises(CofituneError) as caught:
        read(text, *arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_preset_lies_under_what_is_given(read):
    paper = read("preset: paper")
    assert (paper.mask.preset, paper.mask.mode, paper.anchor.weight) == ("paper", "gradient", 0.0)
    assert (paper.search.space, paper.search.strategy, paper.search.learning_rate) == ("paper", "greedy", "fixed")
    assert read("preset: default") == read()
    given = read("mask: none\nsearch: {beam: 2}\nanchor: {rows: 3}", "--preset", "paper", "--search.strategy", "racing",
                 "--search", "extended")
    assert (given.mask.preset, given.mask.mode) == ("none", "gradient")
    assert (given.search.space, given.search.strategy, given.search.beam) == ("extended", "racing", 2)
    assert (given.anchor.rows, given.anchor.weight) == (3, 0.0)
    wrong(read, "preset", "preset: papre")
    wrong(read, "mask", "preset: paper\nmask: [1]")


def test_defaults(read):
    config = read()
    assert (config.model, config.region, config.output, config.delta) == (None, None, None, None)
    assert config.data.max_length == 512 and config.data.train is None and config.data.limit is None
    assert config.importance.model_dump() == {
        "file": None, "samples": 64, "batch_size": 8, "dropout": 0.003, "seed": 0}
    assert (config.mask.preset, config.mask.mode, config.storage) == ("none", "update", "auto")
    assert (config.search.space, config.search.training, config.training) == ("sizes", {}, {})
    assert (config.run.full_sft, config.run.full_sft_training) == (True, {})


def test_a_run_has_the_defaults_of_what_it_is_given_to(read):
    config = read()
    assert (config.anchor, config.memory) == (AnchorSettings(), MemorySettings())
    assert config.anchor.weight == 1.0 and NO_ANCHOR.weight == 0.0
    search = SearchSettings(levels=())
    for name in ("space", "learning_rate", "rate_factors", "prior", "prior_keep"):
        assert getattr(config.search, name) == getattr(search, name)
    assert config.search.strategy == search.strategy.name and config.data.max_length == TrialData().max_length


@pytest.mark.parametrize(("choices", "table"), [
    (StorageName, STORAGES), (PresetName, PRESETS), (ResponseMetric, METRICS["response"]), (MaskMode, MASK_MODES),
    (RunPreset, RUN_PRESETS),
])
def test_the_choices_are_those_there_are(choices, table):
    assert get_args(choices) == tuple(table)


@pytest.mark.parametrize("name", get_args(PriorName))
def test_every_prior_that_can_be_chosen_can_be_made(read, name):
    assert read(f"search: {{prior: {name}}}").search.prior == name and make_prior(name, bench=None)


@pytest.mark.parametrize("storage", ["auto", *STORAGES])
def test_every_storage_of_the_optimizer_can_be_chosen(read, storage):
    assert read(f"storage: {storage}").storage == storage


def test_an_empty_file_is_the_defaults(read):
    assert read("") == read("# nothing\n") == read()


def test_defaults_are_not_shared_between_configurations(read):
    read().training["max_steps"] = 3
    assert read().training == {}


@pytest.mark.parametrize(("text", "arguments"), [
    ("run: {full_sft_training: {learning_rate: 1e-4}}", []),
    ("compare: {full_sft: {learning_rate: 1e-4}}", []),
    (None, ["--compare.full_sft.learning_rate", "1e-4"]),
])
def test_the_arguments_of_full_sft_by_either_name(read, text, arguments):
    config = read(text, *arguments)
    assert config.run.full_sft_training == {"learning_rate": 1e-4} and config.compare.full_sft == {}
    wrong(read, "compare.full_sft is the old name of run.full_sft_training, and both are given", text, *arguments,
          "--run.full_sft_training.seed", "1", "--compare.full_sft.seed", "1")


@pytest.mark.parametrize(("text", "section", "key", "value"), [
    ("model: ./base", "model", "path", "./base"),
    ("data: rows.jsonl", "data", "train", "rows.jsonl"),
    ("versatility: suite/", "versatility", "valid", "suite/"),
    ("importance: importance.safetensors", "importance", "file", "importance.safetensors"),
    ("mask: none", "mask", "preset", "none"),
    ("search: extended", "search", "space", "extended"),
])
def test_a_plain_value_stands_for_the_sections_main_key(read, text, section, key, value):
    assert getattr(getattr(read(text), section), key) == value
    assert getattr(getattr(read(None, f"--{section}", value), section), key) == value


def test_overrides_lie_over_the_file_key_by_key(read):
    text = "data: {train: a.jsonl, max_length: 64}\ntraining: {learning_rate: 0.1, max_steps: 5}\nregion: mha@0\n"
    config = read(text, "--data.max_length", "32", "--training.learning_rate=2e-4", "--region", "ffn@8-15;mha@3")
    assert (config.data.train, config.data.max_length) == ("a.jsonl", 32)
    assert config.training == {"learning_rate": 2e-4, "max_steps": 5}
    assert config.region == "ffn@8-15;mha@3"


def test_a_plain_model_in_the_file_and_a_key_of_it_on_the_command_line(read):
    model = read("model: ./base", "--model.dtype", "float32").model
    assert (model.path, model.dtype) == ("./base", "float32")
    model = read("model: ./base", "--model.dtype", "float32", "--model.path", "./other").model
    assert (model.path, model.dtype) == ("./other", "float32")
    assert read("mask: paper", "--mask.mode", "gradient").mask.model_dump() == {"preset": "paper", "mode": "gradient"}


@pytest.mark.parametrize(("text", "arguments"), [
    ("model: {path: ./base, dtype: float32}", ["--model", "./other"]),
    (None, ["--model.dtype", "float32", "--model", "./other"]),
])
def test_a_plain_value_on_the_command_line_keeps_the_sections_other_keys(read, text, arguments):
    model = read(text, *arguments).model
    assert (model.path, model.dtype) == ("./other", "float32")


@pytest.mark.parametrize(("text", "value"), [
    ("1e-4", 1e-4), ("2E5", 2e5), ("+3e2", 300.0), ("-1e-3", -1e-3), (".5e1", 5.0), ("1.0e-4", 1e-4), ("12", 12),
])
def test_numbers_with_an_exponent_are_numbers(read, text, value):
    for config in (read(f"training: {{adam_epsilon: {text}}}"), read(None, "--training.adam_epsilon", text)):
        got = config.training["adam_epsilon"]
        assert got == value and type(got) is type(value)


def test_exponents_inside_lists_and_mappings_too(read):
    config = read("training: {a: [1e-3, {b: 2e1}]}", "--training.c", "{d: 1e-5}")
    assert config.training == {"a": [1e-3, {"b": 20.0}], "c": {"d": 1e-5}}


@pytest.mark.parametrize("text", ["e5", "cafe", "1e5e", "3rd-epoch", "models/1e4"])
def test_words_with_an_e_stay_words(read, text):
    assert read(f"title: {text}").title == read(None, "--title", text).title == text


@pytest.mark.parametrize("text", ["2024-05-01", "2024", "1e5", "on"])
def test_a_name_that_looks_like_another_type_stays_a_name(read, text):
    assert read(None, "--output", text).output == text


@pytest.mark.parametrize("text", ["off", "on", "yes", "2024-05-01"])
def test_only_true_and_false_are_booleans_and_nothing_is_a_date(read, text):
    assert read(f"title: {text}").title == text
    for config in (read(f"training: {{a: [{text}]}}"), read(None, "--training.a", f"[{text}]")):
        assert config.training == {"a": [text]}
    assert read("training: {a: True, b: false}").training == {"a": True, "b": False}


@pytest.mark.parametrize("text", ["2e5", "1e-4", "12", "1.5", "true", "null", "~"])
def test_quoted_text_is_text(read, text):
    assert read(f"title: '{text}'").title == text
    assert read(f'training: {{a: ["{text}"]}}').training == {"a": [text]}
    assert read(None, "--training.a", f"'{text}'").training == {"a": text}


def test_words_of_training_arguments_stay_words(read):
    assert read("training: {save_strategy: no, bf16: false}").training == {"save_strategy": "no", "bf16": False}


@pytest.mark.parametrize("word", ["on", "off"])
def test_on_and_off_are_words_in_the_memory_section(read, word):
    for memory in (read(f"memory: {{packing: {word}, gradient_release: off}}").memory,
                   read(None, "--memory.packing", word).memory):
        assert (memory.packing, memory.gradient_release) == (word, "off")
    wrong(read, "memory.prefix_cache", "memory: {prefix_cache: true}")


def test_paths_in_the_home_folder(read, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    config = read("data: ~/rows.jsonl\nanchor: {prompts: ~/p.txt}\ncompare: {tasks: {a: {train: ~/a.jsonl}}}",
                  "--output", "~/run", "--model.path=~/base", "--title", "~ 5 rows", "--region", "ffn@all")
    assert (config.data.train, config.anchor.prompts) == ("/home/somebody/rows.jsonl", "/home/somebody/p.txt")
    assert config.compare.tasks == {"a": {"train": "/home/somebody/a.jsonl"}}
    assert (config.output, config.model.path) == ("/home/somebody/run", "/home/somebody/base")
    assert (config.title, config.region) == ("~ 5 rows", "ffn@all")
    nested = read("search: {space: [{a: [~/b, '~5', '~no-such-user/x']}]}").search.space
    assert nested == [{"a": ["/home/somebody/b", "~5", "~no-such-user/x"]}]


def test_values_of_other_types(read):
    config = read(None, "--training.bf16", "true", "--training.resume_from_checkpoint", "null",
                  "--search.space", "[{layers: [0-3, 8], roles: [ffn, mha]}]", "--data.limit", "7")
    assert config.training == {"bf16": True, "resume_from_checkpoint": None}
    assert config.search.space == [{"layers": ["0-3", 8], "roles": ["ffn", "mha"]}]
    assert config.data.limit == 7


def test_a_dash_in_a_key_is_an_underscore_and_one_in_a_value_is_not(read):
    config = read(None, "--data.max-length", "16", "--training.lr-scheduler-type=cosine-x", "--output", "my-run")
    assert config.data.max_length == 16 and config.output == "my-run"
    assert config.training == {"lr_scheduler_type": "cosine-x"}


def test_a_value_may_hold_equals_signs_and_colons(read):
    assert read(None, "--title=a=b").title == "a=b"
    assert read(None, "--data.train", "C:\\rows.csv").data.train == "C:\\rows.csv"


def test_search_levels_pass_as_they_are(read):
    """The search space checks its own levels; the configuration must not drop a misspelt key before that."""
    level = {"name": "x", "lairs": ["0-3"], "roles": ["ffn"]}
    assert read(f"search: {{space: [{level}]}}").search.space == [level]
    from cofitune_fast.search import space_levels

    with pytest.raises(CofituneError, match="Level 1 of the search space has the unknown key 'lairs'"):
        space_levels([level])


@pytest.mark.parametrize(("text", "words"), [
    ("modle: x", "Unknown key modle in {path}; did you mean model?"),
    ("data: {max_lenght: 3}", "Unknown key data.max_lenght in {path}; did you mean data.max_length?"),
    ("model: {path: x, dtyp: auto}", "Unknown key model.dtyp in {path}; did you mean model.dtype?"),
    ("versatility: {tset: x}", "Unknown key versatility.tset in {path}; did you mean versatility.test?"),
    ("memory: {paking: on}", "Unknown key memory.paking in {path}; did you mean memory.packing?"),
    ("anchor: {wieght: 2}", "Unknown key anchor.wieght in {path}; did you mean anchor.weight?"),
    ("importance: {sample: 3}", "did you mean importance.samples?"),
    ("search: {spaces: paper}", "did you mean search.space?"),
    ("run: {fullsft: true}", "did you mean run.full_sft?"),
    ("mask: {zzzz: 1}", "Unknown key mask.zzzz in {path}; known are mode, preset."),
    ("data: {max_lenght: 3, limit: none}", "did you mean data.max_length?"),  # before the wrong type
])
def test_an_unknown_key_is_refused_with_the_nearest_known_one(read, tmp_path, text, words):
    wrong(read, words.format(path=tmp_path / "run.yaml"), text)


def test_an_unknown_key_of_the_command_line(read):
    wrong(read, "Unknown key data.max_lenght in the command line; did you mean data.max_length?",
          None, "--data.max_lenght", "3")


@pytest.mark.parametrize(("text", "words"), [
    ("data: {max_length: long}", "data.max_length in {path} is wrong: "),
    ("data: {max_length: 7}", "greater than or equal to 8 (given: 7)"),
    ("data: {max_length: 8.5}", "data.max_length in {path} is wrong"),
    ("data: {limit: 0}", "data.limit in {path} is wrong"),
    ("data: {metric: meteor}", "(given: 'meteor')"),
    ("importance: {dropout: 1}", "importance.dropout in {path} is wrong"),
    ("importance: {samples: 0}", "importance.samples in {path} is wrong"),
    ("model: {dtype: float32}", "model.path in {path} is wrong"),
    ("model: {path: x, dtype: int8}", "model.dtype in {path} is wrong"),
    ("mask: {mode: sideways}", "'update' or 'gradient' (given: 'sideways')"),
    ("storage: int4", "storage in {path} is wrong"),
    ("loss: focal", "'ce', 'dft' or 'eaft' (given: 'focal')"),
    ("mask: tanh", "mask.preset in {path} is wrong: Input should be 'none', 'paper', 'rank' or 'rank-output'"),
    ("memory: {packing: maybe}", "memory.packing in {path} is wrong: Input should be 'auto', 'on' or 'off'"),
    ("memory: fast", "memory in {path} is wrong: "),
    ("anchor: {rows: 1.5}", "anchor.rows in {path} is wrong: "),
    ("anchor: {temperature: 0}", "anchor.temperature is 0.0; it must be above 0."),
    ("search: {executor: threads}", "search.executor in {path} is wrong: "),
    ("search: {prior: luck}", "search.prior in {path} is wrong: "),
    ("compare: {executor: threads}", "compare.executor in {path} is wrong: "),
    ("training: fast", "training in {path} is wrong"),
    ("region: [ffn@all]", "region in {path} is wrong"),
    ("data: [a.jsonl]", "data in {path} is wrong"),
])
def test_a_value_of_the_wrong_type_or_size(read, tmp_path, text, words):
    wrong(read, words.format(path=tmp_path / "run.yaml"), text)


def test_a_search_space_of_the_wrong_type(read, tmp_path):
    wrong(read, f"search.space in {tmp_path / 'run.yaml'} is wrong: ", "search: {space: 5}")


BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n" for before, name in zip("abcdef", "bcdefg", strict=True))


@pytest.mark.parametrize(("text", "words"), [
    ("model: x\ndata: [a\nregion: y", "{path} is not valid YAML at line 3"),
    ("model: x\n\ttitle: y", "is not valid YAML at line 2"),
    ("data:\n\ttrain: y", "at line 2: a tab begins a value or indents the line"),
    ("data: {train: a, valid: b,\n train: c}", "at line 2: the key train stands twice."),
    ("a: &a [*a]", "at line 1: an alias stands inside what it names."),
    (BOMB, "holds more than 100,000 values."),
    (f"title: {'[' * 3000}", "it is nested too deeply."),
    (f"title: {'[' * 60}{']' * 60}", "it is nested too deeply."),
    ("title: 0b_", "a value cannot be read"),
    ("title: !!bool x", "a value cannot be read"),
    (f"title: {'9' * 5000}", "a value cannot be read"),
    ("a: b: c", "is not valid YAML at line 1"),
    ("- model", "{path} must be a mapping of sections, not list."),
    ("just words", "must be a mapping of sections, not str."),
])
def test_broken_yaml(read, tmp_path, text, words):
    wrong(read, words.format(path=tmp_path / "run.yaml"), text)


def test_an_alias_that_is_not_abused_is_taken(read):
    assert read("data: &rows {train: a.jsonl}\ncompare: {tasks: {one: *rows, two: *rows}}").compare.tasks == {
        "one": {"train": "a.jsonl"}, "two": {"train": "a.jsonl"}}


@pytest.mark.parametrize("path", ["a\0b", "rows\udcff.jsonl"])
def test_text_that_no_file_name_can_hold(path):
    with pytest.raises(CofituneError, match=r"data\.train in the command line is .* NUL or bytes that are not UTF-8"):
        load_config(None, {"data.train": path})


@pytest.mark.parametrize("seeds", [{"importance.seed": -1}, {"compare.seeds": [1, 2**32]}, {"anchor.seed": -1}])
def test_a_seed_that_is_none(seeds):
    with pytest.raises(CofituneError, match=next(iter(seeds)).replace(".", r"\.")):
        load_config(None, seeds)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(CofituneError, match=r"No configuration at .*no\.yaml: the file does not exist"):
        load_config(tmp_path / "no.yaml")
    with pytest.raises(CofituneError, match="is a folder; name a YAML file"):
        load_config(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"title: \xff\xfe")
    with pytest.raises(CofituneError, match="cannot be read"):
        load_config(tmp_path / "bytes.yaml")


@pytest.mark.parametrize(("arguments", "words"), [
    (["--region"], "The option --region has no value; write --region VALUE."),
    (["--region", "--data.limit", "3"], "The option --region has no value"),
    (["region", "x"], "The argument 'region' does not belong to any option; write --section.key value."),
    (["--region", "x", "y"], "The argument 'y' does not belong to any option"),
    (["--training.max_steps="], "The option --training.max_steps is given an empty value"),
    (["--data.limit", ""], "The option --data.limit is given an empty value"),
])
def test_arguments_that_are_no_pairs(arguments, words):
    with pytest.raises(CofituneError) as caught:
        parse_overrides(arguments)
    assert words in str(caught.value)


def test_the_example_in_the_repository_is_a_valid_configuration():
    config = load_config(Path(__file__).parents[2] / "examples" / "run.yaml")
    assert config.anchor.rows == 2 and config.training["learning_rate"] == 4e-4
