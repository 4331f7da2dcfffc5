"""One YAML per run: the sections, their defaults, and overrides from the command line."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from yaml import YAMLError

from .errors import CofituneError
from .yaml_text import parse_yaml, read_yaml

try:
    from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
except ImportError as error:
    raise CofituneError(
        f"The configuration needs {error.name}: pip install 'cofitune-fast[cli]'."
    ) from None


def _true_or_false(training: dict[str, Any]) -> dict[str, Any]:
    """Refuse `off` where TrainingArguments wants true or false: it is text, and any text counts as true there."""
    for key, value in training.items():
        if isinstance(value, str) and value.lower() in ("yes", "no", "on", "off"):
            from transformers import TrainingArguments

            wanted = getattr(TrainingArguments.__dataclass_fields__.get(key), "type", None)
            if wanted is bool or wanted == bool | None:
                raise CofituneError(f"training.{key} is {value!r}; write true or false.")
    return training


Training = Annotated[dict[str, Any], AfterValidator(_true_or_false)]
"""Arguments of transformers.TrainingArguments."""


class Section(BaseModel):
    """A section refuses unknown keys; a plain value stands for the section's main key."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    _main: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_plain_value(cls, value: Any) -> Any:
        main = cls._main.get_default()
        return {main: value} if main and isinstance(value, str) else value


class ModelSection(Section):
    """The base model: a folder, a hub id, or a GGUF file (alone, or `gguf_file` inside `path`).

    `quantize` is how everything outside the region is held; the region itself stays in `dtype`.
    """

    _main = "path"
    path: str
    gguf_file: str | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    device: str | None = None
    attn_implementation: str | None = None
    quantize: Literal["none", "nf4", "int8"] = "none"


class DataSection(Section):
    """The speciality: JSON, JSONL or CSV files. `limit` takes the first rows of `train` only."""

    _main = "train"
    train: str | None = None
    valid: str | None = None
    test: str | None = None
    max_length: int = Field(512, ge=8)
    limit: int | None = Field(None, ge=1)
    metric: Literal["likelihood", "exact", "bleu", "chrf", "rouge_l", "exact_answer", "last_number"] | None = None


class VersatilitySection(Section):
    """Folders (or YAML files) with the groups knowledge, reasoning, instruction. `limit` is per task;
    with `generate` also tasks count for which the model has to write (IFEval). drift_rows: on how many responses of the
    instruction files `compare` (of methods) and `evaluate --delta` measure the KL to the base."""

    _main = "valid"
    valid: str | None = None
    test: str | None = None
    limit: int | None = Field(None, ge=1)
    generate: bool = False
    drift_rows: int = Field(64, ge=0)


class ImportanceSection(Section):
    """How unit importance is measured, or the `file` that holds it already."""

    _main = "file"
    file: str | None = None
    samples: int = Field(64, ge=1)
    batch_size: int = Field(8, ge=1)
    dropout: float = Field(0.003, gt=0, lt=1)
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """Of `Workbench.importance`."""
        return self.model_dump(exclude={"file"})


class MaskSection(Section):
    """The soft mask: `preset` of the normaliser ("none" trains without a mask) and where it acts. Off by default:
    docs/comparison.md has what masks gave beyond a smaller learning rate, which is nothing so far."""

    _main = "preset"
    preset: str = "none"
    mode: Literal["update", "gradient"] = "update"


class AnchorSection(Section):
    """Texts of the base that the region is held to: their KL is added to the loss with this weight (0: no anchor).
    docs/anchor.md explains each setting."""

    weight: float = Field(1.0, ge=0)
    rows: int = Field(2, ge=1)
    texts: int = Field(192, ge=1)
    tokens: int = Field(48, ge=2)
    prompts: str = "general"
    temperature: float = Field(1.0, gt=0)
    top_k: int = Field(64, ge=1)
    seed: int = 0


class MemorySection(Section):
    """What the run does to need less memory and time; docs/memory.md says what each setting costs."""

    prefix_cache: Literal["auto", "off"] = "auto"
    prefix_cache_limit: str = "20GiB"
    prefix_weights: Literal["device", "host"] = "device"
    packing: Literal["auto", "on", "off"] = "auto"
    gradient_release: Literal["off", "exact", "lagged"] = "off"
    optimizer_states: Literal["device", "host"] = "device"


class PlanSection(Section):
    """What `cofitune plan` cannot know: response tokens per row (else half of data.max_length), rows of the training
    data, and the rates of another machine: FLOP/s, bytes/s of its memory, and between it and the host."""

    response_length: int | None = Field(None, ge=1)
    rows: int | None = Field(None, ge=1)
    flops: float | None = Field(None, gt=0)
    bandwidth: float | None = Field(None, gt=0)
    transfer: float | None = Field(None, gt=0)


class SearchSection(Section):
    """The tree search: a named `space`, a YAML file or levels; a strategy; training arguments for its nodes over those
    of `training`; and where the nodes run. docs/search.md explains each."""

    _main = "space"
    space: str | list[dict[str, Any]] = "paper"
    strategy: str = "racing"
    rungs: list[float] | None = None
    beam: int | None = Field(None, ge=1)
    keep: float | None = Field(None, gt=0, le=1)
    confidence: float | None = Field(None, ge=0.5, lt=1)
    learning_rate: Literal["size", "fixed"] = "size"
    rate_factors: list[float] = Field(default_factory=lambda: [1.0])
    prior: Literal["none", "gradient", "kl", "spectrum"] = "none"
    prior_keep: float = Field(1.0, gt=0, le=1)
    budget: str | None = None
    training: Training = Field(default_factory=dict)
    checkpoint_minutes: float = Field(5.0, ge=0)
    executor: Literal["in-process", "processes", "ray"] = "in-process"
    workers: int | None = Field(None, ge=1)
    ray_address: str | None = None


class RunSection(Section):
    """The main job. full_sft: whether full SFT is trained too, as a contrast. full_sft_training: its training
    arguments, over those of `training`."""

    full_sft: bool = True
    full_sft_training: Training = Field(default_factory=dict)


class CompareSection(Section):
    """The `methods` to compare: names of the catalogue, or mappings {name, method, and what is to be different}, on
    `tasks` ({name: the keys of `data`}; without them `data` is the one task), at `learning_rates` ({method: [...]}) and
    with `seeds`. general: a file of general rows, for methods that take them. limit: training rows of each task that
    has no limit of its own. executor, workers, ray_address: as in `search`. full_sft: the old name of
    run.full_sft_training.
    """

    full_sft: Training = Field(default_factory=dict)
    methods: list[str | dict[str, Any]] = Field(default_factory=list)
    seeds: list[int] = Field(default_factory=lambda: [1, 2, 3], min_length=1)
    tasks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    learning_rates: dict[str, list[float]] = Field(default_factory=dict)
    general: str | None = None
    limit: int | None = Field(None, ge=1)
    executor: Literal["in-process", "processes", "ray"] = "in-process"
    workers: int | None = Field(None, ge=1)
    ray_address: str | None = None


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "paper": {"mask": {"preset": "paper", "mode": "gradient"}, "anchor": {"weight": 0.0},
              "search": {"space": "paper", "strategy": "greedy", "learning_rate": "fixed"}},
}
"""Settings under those that are given: paper is CoFiTune as published (arXiv 2404.10306)."""


class Config(Section):
    """A whole run. Which sections a command needs, it says itself. preset: see PRESETS."""

    title: str = "CoFiTune run"
    preset: Literal[tuple(PRESETS)] = "default"
    model: ModelSection | None = None
    data: DataSection = Field(default_factory=DataSection)
    versatility: VersatilitySection = Field(default_factory=VersatilitySection)
    region: str | None = None
    importance: ImportanceSection = Field(default_factory=ImportanceSection)
    mask: MaskSection = Field(default_factory=MaskSection)
    loss: Literal["ce", "dft", "eaft"] = "ce"
    anchor: AnchorSection = Field(default_factory=AnchorSection)
    storage: Literal["auto", "fp32", "bf16_split", "bf16_sr", "bf16", "int8"] = "auto"
    training: Training = Field(default_factory=dict)
    memory: MemorySection = Field(default_factory=MemorySection)
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
    """The configuration of a YAML file with overrides {"section.key": value} on top; one sentence when it is wrong."""
    values = _read(Path(path)) if path is not None else {}
    for key, value in (overrides or {}).items():
        _set(values, key.split("."), value)
    _put_under(values, PRESETS.get(str(values.get("preset")), {}))
    try:
        return Config.model_validate(_with_home(values))
    except ValidationError as error:
        raise CofituneError(_sentence(error, str(path) if path is not None else None, overrides or {})) from None


def _put_under(values: dict[str, Any], preset: dict[str, dict[str, Any]]) -> None:
    """Give `values` what the preset has and they do not."""
    for section, content in preset.items():
        given = values.get(section, {})
        if isinstance(given, str):
            given = {_main_key(section): given}
        if isinstance(given, dict):
            values[section] = {**content, **given}


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """`--section.key value` and `--section.key=value` pairs; values are read as YAML, so numbers are numbers."""
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
    """Whether a key takes text, so that a name such as 2024 stays a name."""
    section: type[Section] | None = Config
    for number, key in enumerate(keys):
        field = section.model_fields.get(key) if section else None
        if field is None:
            return False
        section = _section_class(field)
        if number == len(keys) - 1:
            kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
            return section is not None or (str in kinds and list not in [getattr(k, "__origin__", k) for k in kinds])
    return False


def _value(text: str) -> Any:
    try:
        return parse_yaml(text)
    except YAMLError:
        return text


def _with_home(value: Any) -> Any:
    """Write out the home folder in every path that begins with ~/ ."""
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
    """Set a nested key; `model: folder` in one place and `model.dtype` in another come together in one section."""
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
    field = Config.model_fields.get(section)
    kind = _section_class(field) if field else None
    return kind._main.get_default() if kind else None


def _section_class(field: Any) -> type[Section] | None:
    kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _sentence(error: ValidationError, file: str | None, overrides: dict[str, Any]) -> str:
    # A misspelt key often explains the other problems.
    problem = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    if isinstance(own := problem.get("ctx", {}).get("error"), CofituneError):
        return str(own)
    place: list[str] = []
    section: type[Section] | None = Config
    for part in problem["loc"]:  # what comes after a plain field is pydantic's own bookkeeping
        if section is None:
            break
        parent, field = section, section.model_fields.get(str(part))
        place.append(str(part))
        section = _section_class(field) if field else None
    key = ".".join(place)
    given = any(name == key or name.startswith(f"{key}.") or key.startswith(f"{name}.") for name in overrides)
    where = "the command line" if given or file is None else file
    if problem["type"] == "extra_forbidden":
        known = sorted(parent.model_fields)
        nearest = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*place[:-1], nearest[0]])}?" if nearest else f"known are {', '.join(known)}."
        return f"Unknown key {key} in {where}; {hint}"
    return f"{key} in {where} is wrong: {problem['msg']} (given: {problem['input']!r})."
