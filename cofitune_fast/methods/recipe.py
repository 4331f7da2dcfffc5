"""Recipes: what a method trains and how, as plain values that can be written in YAML, sent and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

from ..anchor import NO_ANCHOR, AnchorSettings, ReferenceSettings, without_later_defaults
from ..errors import CofituneError
from ..importance import PresetName
from ..losses import Loss
from ..ops._adamw_call import MaskMode, PullKind
from ..regions import Region
from ..validation import check_choices, validated

TARGETS = {"all-linear": "all@all", "ffn": "ffn@all"}
Number = float | int
"""A number as it was written, because the digest of a recipe distinguishes 1 from 1.0."""


@dataclass(frozen=True)
class LoraSettings:
    """Settings of low-rank adapters W + alpha / rank B A (Hu et al., arXiv 2106.09685).

    Attributes:
        targets: "all-linear", "ffn", or a region text.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    rank: int = 16
    alpha: Number = 32.0
    targets: str = "all-linear"
    dropout: Number = 0.0

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if not getattr(self, name) > 0:
                raise CofituneError(f"lora.{name} is {getattr(self, name)}; it must be above 0.")
        if not 0 <= self.dropout < 1:
            raise CofituneError(f"lora.dropout is {self.dropout}; it must be at least 0 and below 1.")
        self.region  # noqa: B018  (refuse a wrong region text now)

    @property
    def region(self) -> Region:
        """Region of the projections with an adapter."""
        return Region.parse(TARGETS.get(self.targets, self.targets))


@dataclass(frozen=True)
class PullSettings:
    """Settings of a pull toward the initial weights, decoupled from Adam as weight decay is.

    Attributes:
        kind: "l2" pulls in proportion to the distance, "l1" by a constant.
        strength: factor of the pull, times the learning rate.
        units: weight of the pull per unit: its importance, or the square of it, divided by the layer's mean.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    kind: PullKind = "l2"
    strength: Number = 1.0
    units: Literal["none", "importance", "importance_squared"] = "none"

    def __post_init__(self) -> None:
        check_choices(self, "pull")
        if not self.strength > 0:
            raise CofituneError(f"pull.strength is {self.strength}; it must be above 0.")


@dataclass(frozen=True)
class MaskSettings:
    """Settings of a soft mask on the trained parameters.

    Attributes:
        preset: normaliser of the importance.
        mode: where the mask acts, "update" or "gradient".
        importance: rows that importance is measured on: "task", "general", or "contrast" (importance on the task's
            rows, reduced where the task itself needs the unit, see `Importance.against`).
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    preset: PresetName = "rank"
    mode: MaskMode = "update"
    importance: Literal["task", "general", "contrast"] = "task"

    def __post_init__(self) -> None:
        check_choices(self, "mask")


@dataclass(frozen=True)
class Recipe:
    """A method as plain values; the default is full SFT.

    At most one of region, lora, random_half and frozen_bottom may be given.

    Attributes:
        region: a region text; "full" (or "all") trains every parameter.
        lora: train adapters instead of the weights.
        random_half: train half of each layer's matrices, drawn with the run's seed.
        frozen_bottom: share of the layers, counted from below, that is frozen; the matrices of the others are trained.
        loss: "ce", "dft" or "eaft".
        anchor: fields of AnchorSettings. With the source "rows" and no prompts the texts are the general rows.
        reference: KL to the base on the task's own rows.
        token_filter: perplexity of a response token under the base above which it has no loss.
        pull: pull toward the initial weights.
        mask: soft mask.
        mix: number of general rows per task row.
        mofo: share of each tensor's entries that a step moves.
        alphas: interpolations base + alpha (trained - base) that are scored too.
        training: training arguments over the run's.
        learning_rates: the sweep.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    region: str = "full"
    lora: LoraSettings | None = None
    random_half: bool = False
    frozen_bottom: Number | None = None
    loss: Loss = "ce"
    anchor: Mapping[str, Any] | None = None
    reference: ReferenceSettings | None = None
    token_filter: Number | None = None
    pull: PullSettings | None = None
    mask: MaskSettings | None = None
    mix: Number | None = None
    mofo: Number | None = None
    alphas: tuple[Number, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    learning_rates: tuple[Number, ...] = ()

    def __post_init__(self) -> None:
        check_choices(self, "recipe")
        trained = [key for key, given in (("region", self.region != "full"), ("lora", self.lora is not None),
                                          ("random_half", self.random_half),
                                          ("frozen_bottom", self.frozen_bottom is not None)) if given]
        if len(trained) > 1:
            raise CofituneError(f"{' and '.join(trained)} say what is trained; give one of them.")
        Region.parse(self.region)
        for key, most in (("mix", float("inf")), ("mofo", 1), ("frozen_bottom", 1)):
            value = getattr(self, key)
            if value is not None and not 0 < value < most:
                raise CofituneError(f"{key} is {value}; it must lie above 0{' and below 1' if most == 1 else ''}.")
        if self.token_filter is not None and not self.token_filter > 1:
            raise CofituneError(f"token_filter is {self.token_filter}; it must be above 1.")
        for key in ("alphas", "learning_rates"):
            if not all(value > 0 for value in getattr(self, key)):
                raise CofituneError(f"{key} is {list(getattr(self, key))}; its numbers must be above 0.")
        if self.lora is not None and (self.mask is not None or self.pull is not None):
            raise CofituneError("A mask or a pull acts on the model's own weights, which LoRA leaves alone; leave one "
                                "of them out.")
        if self.mofo and self.mask:
            raise CofituneError("MoFO makes a mask of its own at every step; leave mofo or mask out.")
        for key in ("learning_rate", "seed", "data_seed"):
            if key in self.training:
                raise CofituneError(f"training.{key} comes from the sweep and the seeds; leave it out.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "the recipe") -> Recipe:
        """Read a recipe from plain values; needs pydantic.

        Args:
            where: source of the values, for error messages.

        Raises:
            CofituneError: a key is unknown, a value has the wrong type or is out of range, or the fields exclude each
                other.
        """
        if isinstance(values, Mapping) and values.get("region") == "all":
            values = {**values, "region": "full"}
        recipe = validated(cls, values, where)
        if recipe.anchor is None:
            return recipe
        read = asdict(validated(AnchorSettings, recipe.anchor, f"the anchor of {where}"))
        # Keep only the given keys, and numbers as they were written, because the digest depends on both.
        return replace(recipe, anchor={key: value if value == read[key] else read[key]
                                       for key, value in recipe.anchor.items()})

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON; `from_dict` reads them back to an equal recipe."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that decides the training.

        The sweep and the interpolations are not part of it. Neither are fields with their default value, so that a
        field added later changes no digest.
        """
        default = Recipe().to_dict()
        content = {key: value for key, value in self.to_dict().items()
                   if key not in ("alphas", "learning_rates") and value != default[key]}
        if "anchor" in content:
            anchor = content["anchor"] = without_later_defaults(content["anchor"])
            if "prompts" in anchor:  # a file of prompts counts by its content, not its path
                anchor["prompts"] = AnchorSettings(**anchor).identity().get("prompts")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def needs_general(self) -> bool:
        """True if the recipe reads general rows."""
        return (bool(self.mix) or (self.mask is not None and self.mask.importance == "general")
                or self._anchors_general)

    @property
    def _anchors_general(self) -> bool:
        anchor = self.anchor or {}
        return anchor.get("source") == "rows" and anchor.get("prompts", "general") == "general"

    def anchor_settings(self, general: str | None) -> AnchorSettings:
        """Return the settings of the anchor; `general` is the file of general rows.

        Raises:
            CofituneError: the texts are the general rows, and there is no file.
        """
        if self.anchor is None:
            return NO_ANCHOR
        settings = AnchorSettings(**self.anchor)
        return replace(settings, prompts=general_file(general)) if self._anchors_general else settings


def general_file(path: str | None) -> str:
    """Return the path of the file of general rows. Raises CofituneError if there is none."""
    if path is None:
        raise CofituneError("A method needs general rows; set compare.general to a data file.")
    return path
