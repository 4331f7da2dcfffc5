"""Pull of trained weights toward their initial values: its kind, its strength, and the pulled parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..ops._adamw_call import PULL_KINDS
from ..ops._checks import require

NAME = "Pull"


@dataclass(frozen=True)
class Pull:
    """A pull of weights p toward their initial values p0. Like weight decay it is decoupled from Adam's moments.

    With s = strength * S, where S is 1 or the parameter's tensor in `units`, one step with learning rate lr does:

        "l2"  p <- p - min(1, lr s) (p - p0), in the same sum as AdamW's step and decay. This is the gradient of
              s/2 |p - p0|^2: L2-SP (Li et al., ICML 2018), or with the squared importance as S, EWC (Kirkpatrick et
              al., PNAS 2017).
        "l1"  after AdamW's step p moves toward p0 by lr s, or lands on it. This is the proximal step of s |p - p0|_1
              (Parikh and Boyd, Proximal Algorithms, 2014). A weight whose step is shorter than lr s stays p0, bit for
              bit.

    Choosing a strength: Adam's step of a weight is lr u, where |u| is about 1 if the weight's gradients agree, and far
    smaller if they do not. An "l1" pull of s holds the weights with |u| < s, so hardly any weight moves at s >= 1. An
    "l2" pull undoes most of a change within 1 / (lr s) steps. So in a run of T steps it has an effect from
    s = 1 / (lr T) on.

    In mask mode "update" the mask multiplies the whole step, including pull and decay. So a mask is a smaller learning
    rate for its unit: it changes how fast the unit moves, but not where gradient and pull balance. If the pull were not
    masked, a mask would act as a stronger pull. Where the mask is 0 nothing moves. In mode "gradient" neither decay nor
    pull is masked.

    Args:
        kind: "l2" or "l1".
        strength: >= 0, finite.
        units: name -> S, finite and >= 0, which broadcasts to the parameter like a mask: [out, 1], [1, in], in full, or
            one number. Parameters that are not named are not pulled. None: all are pulled, with S = 1.
        initial: name -> p0, of the parameter's dtype and shape, for all pulled parameters. It is not saved.
            None: a copy of the parameters at the time when the optimizer is made. The state dict contains this copy, so
            an optimizer made after loading a checkpoint's weights gets the right p0 from the checkpoint's state.

    Raises:
        CofituneError: an unknown kind, or a strength out of range. MaskedAdamW checks that the tensors fit.
    """

    kind: str = "l2"
    strength: float = 1.0
    units: Mapping[str, Tensor] | None = None
    initial: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        require(self.kind in PULL_KINDS, f"{NAME}: kind must be 'l2' or 'l1', not {self.kind!r}.")
        require(isinstance(self.strength, (int, float)) and 0 <= self.strength < math.inf,
                f"{NAME}: strength must be a finite number that is not negative, not {self.strength!r}.")

    def pulls(self, name: str) -> bool:
        """True if the parameter of this name is pulled."""
        return self.units is None or name in self.units

    def check_names(self, known: Iterable[str]) -> None:
        """Refuse names in `units` and `initial` that the optimizer does not train."""
        known = set(known)
        for field, given in (("units", self.units), ("initial", self.initial)):
            unknown = sorted(set(given or {}) - known)
            require(not unknown, f"{NAME}: {field} has {', '.join(unknown)}, which this optimizer does not train.")
