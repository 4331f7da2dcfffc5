"""Configuration of a run, one YAML file: the sections, their defaults, and overrides from the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin

from yaml import YAMLError

from .anchor import AnchorSettings
from .data.faults import OnBadRow
from .data.thinking import ThinkingChoice
from .errors import CofituneError
from .importance import PresetName
from .losses import Loss
from .memory import MemorySettings
from .models.quantized import Quantize
from .ops._adamw_call import MaskMode
from .ops._storage import StorageName
from .scoring.tasks import ResponseMetric
from .search import SearchSettings
from .search.executors import ExecutorName
from .search.run import RateRule
from .search.uncertainty import Measure
from .trials import TrialData, TrialSetup
from .trials.priors import PriorName
from .validation import fields_of, section_of, validated
from .yaml_text import parse_yaml, read_yaml

try:
    from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
except ImportError as error:
    raise CofituneError(
        f"The configuration needs {error.name}: pip install 'cofitune-fast[cli]'."
    ) from None


class Section(BaseModel):
    """Section that refuses unknown keys; a text in place of the section sets its `main` key."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    main: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {cls.main: value} if cls.main and isinstance(value, str) else value


class ModelSection(Section):
    """The base model: a folder, a hub id, or a GGUF file (alone, or `gguf_file` inside `path`).

    `quantize` applies to everything outside the region; the region itself stays in `dtype`. `roles` says which weights
    of a layer have which role, where the model's structure does not: {ffn.up: mlp.fc1, attn.q: "attn.qkv[0:64]"}.
    """

    main = "path"
    path: str
    gguf_file: str | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    device: str | None = None
    attn_implementation: str | None = None
    quantize: Quantize = "none"
    roles: dict[str, str | list[str]] | None = None

    @field_validator("roles", mode="before")
    @classmethod
    def _by_role(cls, value: Any) -> Any:
        """{"ffn": {"up": ...}}, as --model.roles.ffn.up gives it, is {"ffn.up": ...}."""
        if not isinstance(value, dict):
            return value
        flat = {}
        for role, entry in value.items():
            flat |= {f"{role}.{name}": one for name, one in entry.items()} if isinstance(entry, dict) else {role: entry}
        return flat


class DataSection(Section):
    """The speciality: data files, folders or hub ids, see `data.read_rows`. `limit` keeps only first rows of `train`.

    on_bad_row: "stop" refuses data with a row that cannot be used, "skip" leaves such rows out. thinking: what becomes
    of the thoughts of a model that thinks, see data.chat. date: the day that a chat template writes, YYYY-MM-DD; by
    default the day on which the run began.
    """

    main = "train"
    train: str | None = None
    valid: str | None = None
    test: str | None = None
    max_length: int = Field(TrialData.max_length, ge=8)
    limit: int | None = Field(None, ge=1)
    metric: ResponseMetric | None = None
    on_bad_row: OnBadRow = "stop"
    thinking: ThinkingChoice = "auto"
    date: str | None = None


class VersatilitySection(Section):
    """The versatility suite: folders or YAML files with the groups knowledge, reasoning and instruction.

    `limit` is the number of items per task. `generate` adds tasks in which the model must write (IFEval). `drift_rows`
    is the number of responses of the instruction files, and of those of the speciality, on which `compare` and
    `evaluate --delta` measure the KL to the base; `search` takes those of the instruction files.
    """

    main = "valid"
    valid: str | None = None
    test: str | None = None
    limit: int | None = Field(None, ge=1)
    generate: bool = False
    drift_rows: int = Field(64, ge=0)


class ImportanceSection(Section):
    """Settings for measuring unit importance, or the `file` of a measured one."""

    main = "file"
    file: str | None = None
    samples: int = Field(64, ge=1)
    batch_size: int = Field(8, ge=1)
    dropout: float = Field(0.003, gt=0, lt=1)
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `Workbench.importance`."""
        return self.model_dump(exclude={"file"})


class MaskSection(Section):
    """The soft mask: its normaliser `preset` ("none" trains without a mask) and where it acts.

    It is off by default. docs/comparison.md reports that masks gave nothing so far beyond a smaller learning rate.
    """

    main = "preset"
    preset: Literal["none", PresetName] = "none"
    mode: MaskMode = "update"


class PlanSection(Section):
    """Quantities that `cofitune plan` cannot know.

    response_length: response tokens per row; by default half of data.max_length. rows: training rows. flops, bandwidth,
    transfer: rates of another machine, namely FLOP/s, bytes/s of its memory, and bytes/s between it and the host.
    """

    response_length: int | None = Field(None, ge=1)
    rows: int | None = Field(None, ge=1)
    flops: float | None = Field(None, gt=0)
    bandwidth: float | None = Field(None, gt=0)
    transfer: float | None = Field(None, gt=0)


class WorkersSection(Section):
    """Place of the runs: this process, `workers` processes on this machine, or the Ray cluster at `ray_address`."""

    executor: ExecutorName = "in-process"
    workers: int | None = Field(None, ge=1)
    ray_address: str | None = None


class SearchSection(WorkersSection):
    """The tree search.

    `space` is a named space, a YAML file or a list of levels. rungs, beam, keep, early and confidence override those of
    `strategy`. `training` overrides the training arguments for the search's nodes. budget_memory (such as 24GiB) and
    budget_time (a share of full SFT's) leave out regions whose training would need more. docs/search.md explains each
    key; SearchSettings and Strategy check the numbers.
    """

    main = "space"
    space: str | list[dict[str, Any]] = SearchSettings.space
    strategy: str = SearchSettings.strategy.name
    rungs: list[float] | None = None
    beam: int | None = None
    keep: float | None = None
    early: Measure | None = None
    confidence: float | None = None
    learning_rate: RateRule = SearchSettings.learning_rate
    rate_factors: tuple[float, ...] = SearchSettings.rate_factors
    prior: Literal["none", PriorName] = SearchSettings.prior
    prior_keep: float = SearchSettings.prior_keep
    budget: str | None = None
    budget_memory: str | None = None
    budget_time: float | None = Field(None, gt=0)
    training: dict[str, Any] = Field(default_factory=dict)
    checkpoint_minutes: float = Field(TrialSetup.checkpoint_minutes, ge=0)


class RunSection(Section):
    """The main job. full_sft: train full SFT too, as a contrast. full_sft_training: its arguments, over those of
    `training`.
    """

    full_sft: bool = True
    full_sft_training: dict[str, Any] = Field(default_factory=dict)


class CompareSection(WorkersSection):
    """The comparison of methods.

    methods: names of the catalogue, or mappings {name, method, and fields that differ}. tasks: {name: the keys of
    `data`}; without it `data` is the one task. learning_rates: {method: [...]}. seeds: seeds of every run. general: a
    file of general rows, for methods that use them. limit: training rows of each task that has no limit of its own.
    executor, workers, ray_address: as in `search`. full_sft: the old name of run.full_sft_training.
    """

    full_sft: dict[str, Any] = Field(default_factory=dict)
    methods: list[str | dict[str, Any]] = Field(default_factory=list)
    seeds: list[int] = Field(default_factory=lambda: [1, 2, 3], min_length=1)
    tasks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    learning_rates: dict[str, list[float]] = Field(default_factory=dict)
    general: str | None = None
    limit: int | None = Field(None, ge=1)


Preset = Literal["default", "paper"]
PRESETS: dict[Preset, dict[str, dict[str, Any]]] = {
    "default": {},
    "paper": {"mask": {"preset": "paper", "mode": "gradient"}, "anchor": {"weight": 0.0},
              "search": {"space": "paper", "strategy": "greedy", "learning_rate": "fixed"}},
}
"""Defaults by preset, which given settings override; "paper" is CoFiTune as published (arXiv 2404.10306)."""


class Config(Section):
    """Configuration of a whole run; each command says which sections it needs.

    preset: see PRESETS. anchor, memory: the fields of AnchorSettings and MemorySettings; docs/anchor.md and
    docs/memory.md explain them.
    """

    title: str = "CoFiTune run"
    preset: Preset = "default"
    model: ModelSection | None = None
    data: DataSection = Field(default_factory=DataSection)
    versatility: VersatilitySection = Field(default_factory=VersatilitySection)
    region: str | None = None
    importance: ImportanceSection = Field(default_factory=ImportanceSection)
    mask: MaskSection = Field(default_factory=MaskSection)
    loss: Loss = "ce"
    anchor: AnchorSettings = AnchorSettings()
    storage: Literal["auto", StorageName] = "auto"
    training: dict[str, Any] = Field(default_factory=dict)
    memory: MemorySettings = MemorySettings()
    plan: PlanSection = Field(default_factory=PlanSection)
    search: SearchSection = Field(default_factory=SearchSection)
    run: RunSection = Field(default_factory=RunSection)
    compare: CompareSection = Field(default_factory=CompareSection)
    delta: str | None = None
    output: str | None = None

    @model_validator(mode="after")
    def _full_sft_by_its_old_name(self) -> Config:
        if self.compare.full_sft and self.run.full_sft_training:
            raise CofituneError("compare.full_sft is the old name of run.full_sft_training, and both are given; leave "
                                "compare.full_sft out.")
        if self.compare.full_sft:
            self.run.full_sft_training, self.compare.full_sft = self.compare.full_sft, {}
        return self


def load_config(path: str | Path | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Load a configuration from a YAML file, with overrides {"section.key": value}.

    Raises:
        CofituneError: a key is unknown, a value is wrong, or the file is unusable; one sentence.
    """
    values = _read(Path(path)) if path is not None else {}
    for key, value in (overrides or {}).items():
        _set(values, key.split("."), value)
    _put_under(values, PRESETS.get(str(values.get("preset")), {}))

    def source(key: str) -> str:
        given = any(name == key or name.startswith(f"{key}.") or key.startswith(f"{name}.") for name in overrides or {})
        return "the command line" if given or path is None else str(path)

    return validated(Config, _with_home(values), source)


def _put_under(values: dict[str, Any], preset: dict[str, dict[str, Any]]) -> None:
    """Fill in the preset's values where `values` has none."""
    for section, content in preset.items():
        given = values.get(section, {})
        if isinstance(given, str) and (main := _main_key(section)):
            given = {main: given}
        if isinstance(given, dict):
            values[section] = {**content, **given}


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """Parse `--section.key value` and `--section.key=value` pairs; values are read as YAML, so that numbers become
    numbers.

    Raises:
        CofituneError: an option has no value, or a value has no option.
    """
    overrides: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            raise CofituneError(f"The argument {argument!r} does not belong to any option; write --section.key value.")
        key, equals, text = argument[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise CofituneError(f"The option --{key} has no value; write --{key} VALUE.")
            text = rest.pop(0)
        key = key.replace("-", "_")
        overrides[key] = text if _wants_text(key.split(".")) else _value(text)
    return overrides


def _wants_text(keys: list[str]) -> bool:
    """True if a key takes text, so that a name such as 2024 stays a name."""
    kind: Any = Config
    for key in keys:
        kind = fields_of(section_of(kind)).get(key)
    if section_of(kind):
        return _main_key(keys[0]) is not None
    kinds = [get_origin(one) or one for one in (kind, *get_args(kind))]
    return str in kinds and list not in kinds


def _value(text: str) -> Any:
    try:
        return parse_yaml(text)
    except YAMLError:
        return text


def _with_home(value: Any) -> Any:
    """Expand the home folder in every path that begins with ~/ ."""
    if isinstance(value, dict):
        return {key: _with_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _read(path: Path) -> dict[str, Any]:
    values = read_yaml(path, "configuration")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise CofituneError(f"The configuration {path} must be a mapping of sections, not {type(values).__name__}.")
    # A section without content, such as `training:` alone, means its defaults.
    return {key: value for key, value in values.items() if value is not None}


def _set(values: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set a nested key; `model: folder` and `model.dtype` from different places are merged into one section."""
    main = _main_key(keys[0])
    if main and isinstance(values.get(keys[0]), str):
        values[keys[0]] = {main: values[keys[0]]}
    if main and len(keys) == 1 and isinstance(value, str) and isinstance(values.get(keys[0]), dict):
        keys = [*keys, main]
    for key in keys[:-1]:
        inner = values.get(key)
        if not isinstance(inner, dict):
            inner = values[key] = {}
        values = inner
    values[keys[-1]] = value


def _main_key(section: str) -> str | None:
    """Return the key that a text in place of a whole section sets, or None."""
    return getattr(section_of(fields_of(Config).get(section)), "main", None)
