"""The importance artefact: raw scores per unit, their origin, and the file format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import CofituneError
from ..files import atomic_path
from ..json_text import parse_json
from ..regions import Region
from .masks import soft_masks
from .names import UNITS, Scores, known, layer_by_layer
from .normalize import Preset, combine, fractional_rank, get_preset

FORMAT = "cofitune_fast.importance"
VERSION = 1
_FORM = {"layers": [int], "samples?": int, "base_model?": str, "base_fingerprint?": str, "settings?": dict}


@dataclass(frozen=True, eq=False)
class Importance:
    """Raw importance of each unit in the measured layers. Scores are >= 0; larger means more important.

    scores: unit kind ("ffn.neuron", "ffn.output", "attn.head") -> float32 [len(layers), units] on the CPU: the mean
        over samples of |dL_n/dg| of the unit's virtual gate (see `gates`), in nats per token. Where the layers differ
        in their number of units, a tuple of tensors [units], one per layer; it is empty for a layer without such units.
        `names.units_of` says the order of the units of a layer.
    layers: the measured layers, ascending. Entry i of the scores belongs to layer layers[i].
    samples: number of samples in the mean; 0 if unknown.
    base_model, base_fingerprint: the measured model; empty if unknown.
    settings: proxy, dropout, seed and so on, for the record only.
    Raises CofituneError for scores that are not of this form.
    """

    scores: Mapping[str, Scores]
    layers: tuple[int, ...]
    samples: int = 0
    base_model: str = ""
    base_fingerprint: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.scores:
            raise CofituneError("The importance holds no scores; measure at least one kind of unit.")
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise CofituneError(f"The layers of an importance must be ascending and distinct, not {self.layers}.")
        for kind, scores in self.scores.items():
            known(kind, UNITS, "unit kind")
            flat = isinstance(scores, Tensor) and scores.ndim != 2
            if flat or len(scores) != len(self.layers) or any(
                row.dtype != torch.float32 or row.ndim != 1 for row in scores
            ):
                found = (f"{scores.dtype} {list(scores.shape)}" if isinstance(scores, Tensor)
                         else ", ".join(f"{row.dtype} {list(row.shape)}" for row in scores))
                raise CofituneError(
                    f"The scores {kind} must be float32 [{len(self.layers)} layers, units], not {found}."
                )
            for layer, row in zip(self.layers, scores, strict=True):
                if not (row.isfinite().all() and (row >= 0).all()):
                    raise CofituneError(
                        f"The scores {kind} of layer {layer} are not all finite and >= 0; the model's weights, the "
                        "data or the dtype (float16 overflows) are at fault."
                    )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically. Everything except the scores is JSON in its metadata.

        Scores of a kind are one tensor KIND, [layers, units], or tensors KIND.LAYER, [units], where layers differ.
        """
        about = {
            "layers": list(self.layers), "samples": self.samples, "base_model": self.base_model,
            "base_fingerprint": self.base_fingerprint, "settings": dict(self.settings),
        }
        metadata = {"format": FORMAT, "version": str(VERSION), "importance": json.dumps(about)}
        with atomic_path(path) as temporary:
            save_file({name: scores.contiguous() for name, scores in self._tensors()}, temporary, metadata)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for kind, scores in self.scores.items():
            if isinstance(scores, Tensor):
                yield kind, scores
            else:
                # Copies, as safetensors takes no tensors that share memory.
                yield from ((f"{kind}.{layer}", row.clone()) for layer, row in zip(self.layers, scores, strict=True))

    @classmethod
    def load(cls, path: str | Path) -> Importance:
        """Read a file written by `save`. Raises CofituneError for other files and damaged ones."""
        path = Path(path)
        if not path.is_file():
            raise CofituneError(f"No importance at {path}: the file does not exist.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                scores = {kind: file.get_tensor(kind) for kind in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise CofituneError(
                f"The importance {path} cannot be read as safetensors ({error!s:.200}); compute it anew."
            ) from None
        if metadata.get("format") != FORMAT:
            raise CofituneError(f"{path} is a safetensors file but no importance; name what `Importance.save` wrote.")
        if metadata.get("version") != str(VERSION):
            raise CofituneError(
                f"The importance {path} has format version {metadata.get('version')!s:.20}, this release reads "
                f"version {VERSION}; compute it anew."
            )
        what = f"The importance {path} is damaged: its description"
        about = parse_json(metadata.get("importance", "null"), what, _FORM, "compute it anew")
        try:
            return cls(_by_kind(scores, about["layers"]), **{**about, "layers": tuple(about["layers"])})
        except (KeyError, TypeError, ValueError) as error:
            raise CofituneError(f"The importance {path} is damaged ({error}); compute it anew.") from None

    def check(self, model_fingerprint: str, model: str = "the model given") -> None:
        """Refuse a base other than the measured one. model: the name of the other base in the message."""
        if not self.base_fingerprint:
            raise CofituneError("The importance does not record its base model; import or compute it with base=...")
        if self.base_fingerprint != model_fingerprint:
            raise CofituneError(
                f"The importance was measured on {self.base_model} (fingerprint {self.base_fingerprint[:12]}), but "
                f"{model} has fingerprint {model_fingerprint[:12]}; compute it for this model."
            )

    def against(self, task: Importance) -> Importance:
        """Importance of units that matter here and not for `task`: r (1 - r_task), with r the fractional rank in the
        layer, 0 to 1.

        Raises CofituneError unless both were measured on the same base, layers and unit kinds.
        """
        task.check(self.base_fingerprint, self.base_model)
        self._require_alike([task])
        def contrast(own: Tensor, other: Tensor) -> Tensor:
            return fractional_rank(own) * (1 - fractional_rank(other))

        scores = {kind: layer_by_layer(contrast, own, task.scores[kind]) for kind, own in self.scores.items()}
        return replace(self, scores=scores, settings={**self.settings, "against": dict(task.settings)})

    def normalized(self, preset: str | Preset = "paper") -> dict[str, Scores]:
        """Normalise each layer by itself: kind -> importance I in [0, 1], of the form of the scores."""
        return {kind: layer_by_layer(get_preset(preset).normalizer, scores) for kind, scores in self.scores.items()}

    def masks(
        self, model: nn.Module, region: Region | str, preset: str | Preset = "paper", *, also: Sequence[Importance] = ()
    ) -> dict[str, Tensor]:
        """Make soft masks m = 1 - I for the parameters of `region`, which may be smaller than the trained region.

        Returns trained name, as in `Region.parameters`, -> float32 factor in [0, 1], on the weight's device. The
        factor is the same for all weights of a unit:

        | role | masked by |
        |---|---|
        | ffn.gate, ffn.up | neuron, outputs |
        | ffn.down | FFN output, outputs (presets "paper", "rank-output"), or neuron, inputs ("rank") |
        | attn.q, attn.gate | head, outputs |
        | attn.k, attn.v | the most important head that reads the key-value head, outputs |
        | attn.o | head, inputs |
        | attn.q_a, attn.kv_a, ffn.router, mix.in, mix.out | nothing: they have no units, and no mask |

        A mask of outputs holds for the bias too. Weights [out, in] get [out, 1] or [1, in]. A tensor of parts gets a
        mask of all its parts together, with 1 where there is no mask, and a part that is trained alone gets one of the
        part's shape. Projections whose sizes do not divide by the heads get none.

        also: other importances of the same layers and kinds. After normalisation the element-wise maximum counts.
        Raises CofituneError if a layer or unit kind of the region was not measured, or if the sizes do not fit.
        """
        sources = [self, *also]
        self._require_alike(also)
        preset = get_preset(preset)
        by_source = [source.normalized(preset) for source in sources]
        together = {kind: layer_by_layer(lambda *rows: combine(rows), *(values[kind] for values in by_source))
                    for kind in self.scores}
        return soft_masks(model, Region.parse(region), together, self.layers, down=preset.down)

    def _require_alike(self, others: Sequence[Importance]) -> None:
        if any(other.layers != self.layers or other.scores.keys() != self.scores.keys() for other in others):
            raise CofituneError("Importances to be joined must cover the same layers and unit kinds.")


def _by_kind(tensors: Mapping[str, Tensor], layers: Sequence[int]) -> dict[str, Scores]:
    """Scores by kind, of the tensors KIND or KIND.LAYER of a file."""
    kinds = [kind for kind in UNITS if kind in tensors or any(f"{kind}.{layer}" in tensors for layer in layers)]
    scores = {kind: tensors[kind] if kind in tensors else tuple(tensors[f"{kind}.{layer}"] for layer in layers)
              for kind in kinds}
    left = len(tensors) - sum(1 if isinstance(one, Tensor) else len(one) for one in scores.values())
    if left:
        raise ValueError(f"it holds {left} tensors that are no scores of its layers")
    return scores
