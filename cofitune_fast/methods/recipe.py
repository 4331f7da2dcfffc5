"""A recipe: what a method trains and how, as plain values, so that it can be written in YAML, sent and compared."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from ..anchor import AnchorSettings
from ..errors import CofituneError
from ..importance import PRESETS
from ..regions import Region

TARGETS = {"all-linear": "all@all", "ffn": "ffn@all"}


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters W + alpha / rank B A (Hu et al., arXiv 2106.09685) on `targets`: all-linear, ffn, or a region
    text."""

    rank: int = 16
    alpha: float = 32.0
    targets: str = "all-linear"
    dropout: float = 0.0

    @property
    def region(self) -> Region:
        """The projections that get an adapter."""
        return Region.parse(TARGETS.get(self.targets, self.targets))


@dataclass(frozen=True)
class PullSettings:
    """A pull toward the initial weights beside the step, decoupled as weight decay is: `strength` times the rate of
    the distance (l2), or of a constant (l1); with `units` times the unit's importance, or its square, over the layer's
    mean."""

    kind: str = "l2"
    strength: float = 1.0
    units: str = "none"


@dataclass(frozen=True)
class MaskSettings:
    """A soft mask on what is trained: normaliser, where it acts, and of what the importance is: measured on the task's
    rows, on general rows, or on the task's rows and against what these need themselves (`Importance.against`)."""

    preset: str = "rank"
    mode: str = "update"
    importance: str = "task"


@dataclass(frozen=True)
class Recipe:
    """Plain values; the default is full SFT.

    region: text, "full" (or "all") for every parameter. lora: adapters instead of the weights. random_half: half of
    each layer's matrices, drawn with the run's seed. frozen_bottom: the share of layers from below that is frozen; the
    matrices of the others are trained. At most one of these four.
    loss: ce, dft or eaft. anchor: of AnchorSettings. mix: general rows per task row. mofo: the share of each tensor's
    entries that a step moves. alphas: interpolations base + alpha (trained - base) that are scored besides.
    training: arguments over the run's. learning_rates: the sweep.
    """

    region: str = "full"
    lora: LoraSettings | None = None
    random_half: bool = False
    frozen_bottom: float | None = None
    loss: str = "ce"
    anchor: Mapping[str, Any] | None = None
    pull: PullSettings | None = None
    mask: MaskSettings | None = None
    mix: float | None = None
    mofo: float | None = None
    alphas: tuple[float, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    learning_rates: tuple[float, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "The recipe") -> Recipe:
        """Read plain values; `where` begins the sentence about a wrong one. Raises CofituneError."""
        refuse_unknown(values, [one.name for one in fields(cls)], where)
        values = dict(values)
        if values.get("region") == "all":
            values["region"] = "full"
        for key, kind in _PARTS.items():
            if isinstance(values.get(key), Mapping):
                refuse_unknown(values[key], [one.name for one in fields(kind)], f"{where}, under {key},")
                values[key] = kind(**values[key])
        for key in ("alphas", "learning_rates"):
            if not isinstance(values.get(key, ()), Sequence) or isinstance(values.get(key), str):
                raise CofituneError(f"{where} has {values[key]!r} as {key}; it must be a list of numbers.")
            values[key] = tuple(values.get(key, ()))
        recipe = cls(**values)
        recipe._check(where)
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back to an equal recipe."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def digest(self) -> str:
        """Of what is trained, sha256 (hex): the sweep and the interpolations are not part of it, nor is a field that
        has its default, so that a field added later changes no digest."""
        content = {key: value for key, value in self.to_dict().items()
                   if key not in ("alphas", "learning_rates") and value != _DEFAULTS[key]}
        if "prompts" in content.get("anchor", {}):  # of a file what it says, wherever it lies
            content["anchor"]["prompts"] = AnchorSettings(**content["anchor"]).identity()["prompts"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def needs_general(self) -> bool:
        """Whether it reads general rows."""
        return bool(self.mix) or (self.mask is not None and self.mask.importance == "general")

    def _check(self, where: str) -> None:
        def require(right: Any, text: str) -> None:
            if not right:
                raise CofituneError(f"{where} {text}")

        for key, kinds in _KINDS.items():
            value = getattr(self, key)
            require(value is None or (isinstance(value, kinds) and (not isinstance(value, bool) or kinds is bool)),
                    f"has {value!r} as {key}, which is of the wrong type.")
        for part, known in _CHOICES.items():
            key, _, inner = part.partition(".")
            value = getattr(self, key) if not inner else getattr(getattr(self, key), inner, None)
            require(value is None or value in known,
                    f"has {value!r} as {part}; choose one of {', '.join(known)}.")
        trained = [key for key, given in (("region", self.region != "full"), ("lora", self.lora is not None),
                                          ("random_half", self.random_half),
                                          ("frozen_bottom", self.frozen_bottom is not None)) if given]
        require(len(trained) <= 1, f"says by {' and '.join(trained)} what is trained; give one of them.")
        Region.parse(self.region)
        for key in ("mix", "mofo", "frozen_bottom"):
            value = getattr(self, key)
            require(value is None or (value > 0 and (key == "mix" or value < 1)),
                    f"has {value} as {key}; it must lie above 0{'' if key == 'mix' else ' and below 1'}.")
        for key in ("alphas", "learning_rates"):
            values = getattr(self, key)
            require(all(isinstance(one, (int, float)) and one > 0 for one in values),
                    f"has {list(values)} as {key}; they must be numbers above 0.")
        if self.lora is not None:
            lora = self.lora
            require(isinstance(lora.rank, int) and lora.rank > 0 and _number(lora.alpha) and lora.alpha > 0,
                    f"has the lora rank {lora.rank!r} and alpha {lora.alpha!r}; both must be above 0.")
            require(_number(lora.dropout) and 0 <= lora.dropout < 1, "has a lora dropout outside [0, 1).")
            require(self.mask is None and self.pull is None,
                    "puts a mask or a pull on LoRA; these act on the model's own weights, so leave one of them out.")
            lora.region  # noqa: B018  (a region text is read now)
        if self.pull is not None:
            require(_number(self.pull.strength) and self.pull.strength > 0,
                    f"has {self.pull.strength!r} as pull.strength; it must be above 0.")
        require(not (self.mofo and self.mask), "has both mofo and mask; MoFO makes a mask of its own at every step.")
        for key in ("learning_rate", "seed", "data_seed"):
            require(key not in self.training, f"sets training.{key}, which comes from the sweep and the seeds.")


_PARTS = {"lora": LoraSettings, "pull": PullSettings, "mask": MaskSettings}
_KINDS: dict[str, Any] = {"region": str, "random_half": bool, "loss": str, "anchor": Mapping, "training": Mapping,
                          "mix": (int, float), "mofo": (int, float), "frozen_bottom": (int, float), **_PARTS}
_CHOICES = {"loss": ("ce", "dft", "eaft"), "pull.kind": ("l2", "l1"),
            "pull.units": ("none", "importance", "importance_squared"), "mask.preset": tuple(PRESETS),
            "mask.mode": ("update", "gradient"), "mask.importance": ("task", "general", "contrast")}
_DEFAULTS = {one.name: one.default if one.default is not MISSING else one.default_factory() for one in fields(Recipe)}


def refuse_unknown(values: Any, known: Sequence[str], where: str) -> None:
    """One sentence for what is no mapping, or has a key that is not known."""
    if not isinstance(values, Mapping):
        raise CofituneError(f"{where} must be a mapping, not {values!r}.")
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
            raise CofituneError(f"{where} has the unknown key {key}; {hint}")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
