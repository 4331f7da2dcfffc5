"""A pull of trained weights back to those that training began with: its kind, its strength, whom it draws."""

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
    """A pull of weights p toward their initial values p0, decoupled from Adam's moments as weight decay is.

    With s = strength * S, S being 1 or the parameter's tensor in `units`, one step of the rate lr does:

        "l2"  p <- p - min(1, lr s) (p - p0), in the same sum as AdamW's step and decay; the gradient of s/2 |p - p0|^2.
              L2-SP (Li et al., ICML 2018); with the squared importance as S, EWC (Kirkpatrick et al., PNAS 2017).
        "l1"  after AdamW's step p comes nearer to p0 by lr s, or lands on it: the proximal step of s |p - p0|_1 (Parikh
              and Boyd, Proximal Algorithms, 2014). A weight whose step is shorter than lr s stays p0, to the bit.

    How strong is strong: Adam's step of a weight is lr u, |u| being about 1 where its gradients agree and far less if
    they do not. An "l1" pull of s holds the weights of |u| < s, so that hardly any moves at s >= 1. An "l2" pull undoes
    most of a change in 1 / (lr s) steps: in a run of T steps it begins to be felt at s = 1 / (lr T).

    A soft mask of mode "update" multiplies the whole step, pull included, as it does with decay: a mask is a smaller
    learning rate for its unit, which changes how fast the unit moves and not where gradient and pull balance; were the
    pull not masked, a mask would be a stronger pull. Where the mask is 0 nothing moves, so there is nothing to undo. In
    mode "gradient" neither decay nor pull is masked.

    Args:
        kind: "l2" or "l1".
        strength: >= 0, finite.
        units: name -> S, finite and >= 0, that broadcasts to the parameter like a mask: [out, 1], [1, in], in full, or
            one number. Parameters that are not named are not pulled. None: all are, with S = 1.
        initial: name -> p0, of the parameter's dtype and shape, for all that are pulled. None: a copy of the parameters
            as they are when the optimizer is made, which its state dict then carries: an optimizer made after a
            checkpoint's weights were loaded takes the copy over from the checkpoint's state. Given, it is not saved.

    Raises:
        CofituneError: an unknown kind, a strength out of range. What does not fit the parameters MaskedAdamW refuses.
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
        """Whether the parameter of this name is pulled."""
        return self.units is None or name in self.units

    def check_names(self, known: Iterable[str]) -> None:
        """Refuses names of `units` and `initial` that the optimizer does not train."""
        known = set(known)
        for field, given in (("units", self.units), ("initial", self.initial)):
            unknown = sorted(set(given or {}) - known)
            require(not unknown, f"{NAME}: {field} has {', '.join(unknown)}, which this optimizer does not train.")
