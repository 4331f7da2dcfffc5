"""Catalogue of methods by name, each with a sentence and its source, and the reader of compare.methods."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CofituneError
from ..regions import DEFAULT_REGION
from .recipe import Recipe

FULL_RATES = (1e-5, 3e-5, 5e-5, 1e-4)
LORA_RATES = (1e-4, 3e-4, 1e-3, 2e-3)
REGION_RATES = (1e-4, 2e-4, 4e-4, 8e-4)
ALPHAS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class NamedMethod:
    """A recipe under its name in the comparison; `sentence` says what it is and where it comes from."""

    name: str
    sentence: str
    recipe: Recipe

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "sentence": self.sentence, "recipe": self.recipe.to_dict()}


_REGION = "the run's region"  # stands for the region of the configuration
_FFN = {"targets": "ffn"}
_ANCHOR = {"weight": 1.0, "rows": 2, "tokens": 48}  # spelt out: a new default must not change the measured recipes
_SELF_MIX = {**_ANCHOR, "loss": "ce"}
_REFERENCE = {"weight": 1.0, "tokens": "response", "mask_target": False, "top_k": 64}

CATALOGUE: dict[str, tuple[str, dict[str, Any]]] = {
    "full-sft": ("Every parameter is trained.", {}),
    "region": ("Only the region is trained, without a mask: CoFiTune coarse (arXiv 2404.10306).",
               {"region": _REGION}),
    "lora": ("LoRA of rank 16 on all projections (Hu et al., arXiv 2106.09685), by PEFT.", {"lora": {}}),
    "lora-ffn": ("LoRA of rank 16 on the FFN projections (Hu et al., arXiv 2106.09685), by PEFT.", {"lora": _FFN}),
    "wise-ft": ("Full SFT, interpolated with the base after training (Wortsman et al., WiSE-FT, arXiv 2109.01903).",
                {"alphas": ALPHAS}),
    "l2": ("Full SFT with a pull to the initial weights, in proportion to the distance (Li et al., L2-SP, "
           "arXiv 1802.01483); decoupled from Adam.", {"pull": {"kind": "l2", "strength": 100.0}}),
    "l1": ("Full SFT with a constant pull to the initial weights (soft threshold), decoupled from Adam.",
           {"pull": {"kind": "l1", "strength": 0.1}}),
    "ewc": ("Full SFT with a quadratic pull weighted by the squared importance of the units, after EWC (Kirkpatrick et "
            "al., arXiv 1612.00796), which weights each parameter by its own squared gradient.",
            {"pull": {"kind": "l2", "strength": 100.0, "units": "importance_squared"}}),
    "v-softmask": ("Full SFT with a soft mask over the whole model, on the gradient (Ke et al., DAS, arXiv 2302.03241; "
                   "the V-SoftMask of the CoFiTune paper).", {"mask": {"preset": "paper", "mode": "gradient"}}),
    "mix": ("Full SFT on the task's rows and as many general rows (replay).", {"mix": 1.0}),
    "bottom-frozen": ("The matrices of the upper half of the layers are trained.", {"frozen_bottom": 0.5}),
    "hft": ("A random half of each layer's matrices is trained (Hui et al., HFT, arXiv 2404.18466).",
            {"random_half": True}),
    "mofo": ("Full SFT that moves only the tenth of each tensor with the largest momentum at each step (Chen et al., "
             "MoFO, arXiv 2407.20999).", {"mofo": 0.1}),
    "dft": ("Full SFT with the loss of each token times its own probability, held fixed (Wu et al., DFT, "
            "arXiv 2508.05629).", {"loss": "dft"}),
    "eaft": ("Full SFT with the loss of each token weighted by the entropy of the model's prediction (EAFT, arXiv "
             "2601.02151).",
             {"loss": "eaft"}),
    "fine-gradient": ("The region with a rank mask on the gradient.",
                      {"region": _REGION, "mask": {"mode": "gradient"}}),
    "fine-update": ("The region with a rank mask on Adam's step.", {"region": _REGION, "mask": {"mode": "update"}}),
    "fine-paper": ("The region with the paper's mask on the gradient: CoFiTune fine (arXiv 2404.10306).",
                   {"region": _REGION, "mask": {"preset": "paper", "mode": "gradient"}}),
    "fine-general": ("The region with a rank mask on Adam's step, its importance measured on general rows.",
                     {"region": _REGION, "mask": {"mode": "update", "importance": "general"}}),
    "anchor": ("The region with an anchor: the KL to the base on texts that the base wrote itself.",
               {"region": _REGION, "anchor": _ANCHOR}),
    "full-anchor": ("Full SFT with the anchor.", {"anchor": _ANCHOR}),
    "lora-anchor": ("LoRA of rank 16 on all projections with the anchor.", {"lora": {}, "anchor": _ANCHOR}),
    "region-anchor-wise": ("The region with the anchor, interpolated with the base after training.",
                           {"region": _REGION, "anchor": _ANCHOR, "alphas": ALPHAS}),
    "self-mix": ("Full SFT on the task's rows and, by the ordinary cross-entropy, on texts that the base wrote itself "
                 "(after SA-SFT, arXiv 2602.20162).", {"anchor": _SELF_MIX}),
    "region-self-mix": ("The region with the cross-entropy in place of the anchor's KL, on the same texts.",
                        {"region": _REGION, "anchor": _SELF_MIX}),
    "sft-kl": ("Full SFT with the KL to the base on the task's own response tokens.", {"reference": _REFERENCE}),
    "sft-kl-masked": ("Full SFT with the KL to the base on the task's own response tokens, whose own token is left out "
                      "of both distributions (arXiv 2605.29498).",
                      {"reference": {**_REFERENCE, "mask_target": True}}),
    "asft": ("DFT with the KL to the base on the task's own response tokens, weight 0.05 (Zhu et al., ASFT, arXiv "
             "2509.23753).", {"loss": "dft", "reference": {**_REFERENCE, "weight": 0.05}}),
    "selfaug": ("Full SFT with the KL to the base on the task's prompt tokens (Huang et al., SelfAug, arXiv "
                "2509.03934).", {"reference": {**_REFERENCE, "tokens": "prompt"}}),
    "stm": ("Full SFT without the response tokens whose perplexity under the base is above 2.5 (STM, arXiv "
            "2501.14315).", {"token_filter": 2.5}),
    "attention": ("The attention projections of all layers are trained (arXiv 2510.08564).", {"region": "mha@all"}),
    "gate-up": ("The gate and up projections of all layers are trained (arXiv 2510.08564).",
                {"region": "ffn.gate+ffn.up@all"}),
    "anchor-attention": ("The attention projections of all layers (arXiv 2510.08564) with the anchor.",
                         {"region": "mha@all", "anchor": _ANCHOR}),
    "anchor-gate-up": ("The gate and up projections of all layers (arXiv 2510.08564) with the anchor.",
                       {"region": "ffn.gate+ffn.up@all", "anchor": _ANCHOR}),
    "anchor-reverse": ("The region with the anchor, but the KL from the model to the base.",
                       {"region": _REGION, "anchor": {**_ANCHOR, "loss": "reverse_kl"}}),
    "anchor-general-texts": ("The region with an anchor of the general rows' own responses.",
                             {"region": _REGION, "anchor": {**_ANCHOR, "source": "rows"}}),
    "anchor-free-texts": ("The region with an anchor of texts that the base wrote without a prompt.",
                          {"region": _REGION, "anchor": {**_ANCHOR, "source": "free"}}),
}


def read_methods(
    entries: Sequence[str | Mapping[str, Any]], rates: Mapping[str, Sequence[float]] | None = None,
    region: str | None = None,
) -> list[NamedMethod]:
    """Read the entries of compare.methods.

    Args:
        entries: names of the catalogue, or mappings {name, method: NAME OF THE CATALOGUE, sentence, fields of Recipe},
            whose fields override the catalogue's.
        rates: learning-rate sweeps by method name.
        region: region that the catalogue's region methods train; defaults to DEFAULT_REGION.

    Raises:
        CofituneError: a name is unknown or repeated, a sweep belongs to no method, or a recipe is invalid.
    """
    rates = dict(rates or {})
    methods = [_read(entry, rates, region or DEFAULT_REGION) for entry in entries]
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise CofituneError(f"compare.methods has {name} twice; give one of them another name.")
    for name in rates:
        if name not in names:
            raise CofituneError(f"compare.learning_rates has rates for {name}, which is not among compare.methods"
                                f"{_nearest(name, names)}")
    return methods


def _read(entry: str | Mapping[str, Any], rates: Mapping[str, Sequence[float]], region: str) -> NamedMethod:
    values = {"method": entry} if isinstance(entry, str) else entry
    if not isinstance(values, Mapping):
        raise CofituneError(f"An entry of compare.methods must be a name or a mapping, not {values!r}.")
    values = dict(values)
    kind = values.pop("method", None)
    if kind not in CATALOGUE:
        raise CofituneError(f"compare.methods names the unknown method {kind!r}{_nearest(str(kind), list(CATALOGUE))}")
    name, sentence = str(values.pop("name", kind)), values.pop("sentence", None)
    content = dict(CATALOGUE[kind][1])
    if content.get("region") == _REGION:
        content["region"] = region
    for key, value in values.items():
        both = isinstance(value, Mapping) and isinstance(content.get(key), Mapping)
        content[key] = {**content[key], **value} if both else value
    if name in rates:
        content["learning_rates"] = rates[name]
    recipe = Recipe.from_dict(content, f"the method {name} of compare.methods")
    if not recipe.learning_rates:
        recipe = Recipe.from_dict({**recipe.to_dict(), "learning_rates": _default_rates(recipe)})
    return NamedMethod(name, sentence or CATALOGUE[kind][0], recipe)


def _default_rates(recipe: Recipe) -> tuple[float, ...]:
    if recipe.lora is not None:
        return LORA_RATES
    return FULL_RATES if recipe.region == "full" else REGION_RATES


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}."
