"""Types of analysis.json: the effects of training, read at every layer (docs/analysis.md explains each figure)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Required

from .fields import Check, Entry, Finite, Maybe, Missing, Text, Words, distinct, words
from .head import Head

Role = Literal["attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate", "ffn.up", "ffn.down"]


class Rest(Entry, total=False):
    """Parameters without a role: embedding, head and norms together."""

    relative: Finite | None
    share: Required[Finite]


class Change(Entry, total=False):
    """Change of the weights in training; see `analysis.change.weight_change`."""

    relative: Required[dict[str, list[Finite | None]]]
    share: Required[dict[str, list[Finite]]]
    rest: Required[Rest]
    total: Required[Finite]


class Lens(Entry, total=False):
    """Logit lens at the embedding and after each layer: means over the response tokens."""

    nll: Required[list[Finite]]
    nll_se: Required[list[Finite]]
    top1: Required[list[Finite]]
    median_rank: Required[list[Finite]]
    kl: Required[list[Finite]]


class Counts(Entry, total=False):
    """Counts of tokens by the layer from which on they are readable (the embedding first), and of those that never are.
    """

    counts: Required[list[int]]
    never: Required[int]


class Readable(Entry, total=False):
    """Depths at which tokens become readable.

    Attributes:
        gained: counts over tokens that are right at the end in this model but not in the base.
    """

    all: Required[Counts]
    gained: Required[Counts]


class Direct(Entry, total=False):
    """Direct contribution of each module to the right token's lead, in logits; attention and FFN by layer."""

    embedding: Required[Finite]
    attention: Required[list[Finite]]
    ffn: Required[list[Finite]]
    rounding: Required[Finite]
    total: Required[Finite]


class Model(Entry, total=False):
    """Figures of a fine-tuned model, or of the base, which has no change."""

    name: Required[Text]
    path: str | None
    region: Maybe[str]
    change: Maybe[Change]
    lens: Required[Lens]
    readable: Required[Readable]
    direct: Required[Direct]


class Data(Entry, total=False):
    """Data that was read.

    Attributes:
        tokens: number of response tokens.
    """

    file: Words
    task: Words
    rows: Maybe[int]
    tokens: Maybe[int]


class Measured(Entry, total=False):
    """Measurements of `analysis.analyze`; the base is the first model."""

    layers: Required[int]
    roles: Required[list[Role]]
    data: Required[Data]
    models: Required[Annotated[list[Model], distinct("name")]]


class AnalysisEntry(Head, Measured, total=False):
    title: Annotated[str, words("Where the speciality enters"), Missing(str)]


def _a_figure_for_each_layer(analysis: AnalysisEntry) -> AnalysisEntry:
    layers, roles, models = analysis["layers"], analysis["roles"], analysis["models"]
    if layers < 1:
        raise ValueError(f"has {layers} as `layers`, but that must be the number of layers")
    if not roles:
        raise ValueError("has no `roles`")
    if len(models) < 2:
        raise ValueError("has `models` that are not the base and at least one fine-tuned model")

    def require(values: list[Any], length: int, place: str) -> None:
        if len(values) != length:
            raise ValueError(f"has {len(values)} numbers in {place}, but must have {length}")

    for index, model in enumerate(models):
        place = f"models[{index}]"
        for key in Lens.__annotations__:
            require(model["lens"][key], layers + 1, f"{place}.lens.{key}")
        for key in Readable.__annotations__:
            require(model["readable"][key]["counts"], layers + 1, f"{place}.readable.{key}.counts")
        for key in ("attention", "ffn"):
            require(model["direct"][key], layers, f"{place}.direct.{key}")
        if not index:
            continue
        if model["change"] is None:
            raise ValueError(f"has no {place}.change, but only the base may lack one")
        for key in ("relative", "share"):
            for role in roles:
                require(model["change"][key].get(role, []), layers, f"{place}.change.{key}[{role!r}]")
    return analysis


Analysis = Annotated[AnalysisEntry, Check(_a_figure_for_each_layer)]
