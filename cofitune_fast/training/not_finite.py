"""Errors of a training whose numbers are no longer finite."""

from __future__ import annotations

from ..errors import CofituneError


class LossNotFinite(CofituneError):
    """The loss became NaN or infinite; `step` is the number of updates made before that."""

    def __init__(self, step: int, value: float):
        super().__init__(
            f"The loss is {value} at step {step + 1}; training stops. Lower training.learning_rate, or look at the "
            "data of that step."
        )
        self.step = step


class NothingTrained(LossNotFinite):
    """The gradients of all `step` steps were NaN or infinite, so that the weights are the base's."""

    def __init__(self, steps: int):
        CofituneError.__init__(
            self, f"The gradients of all {steps} steps were not finite, so nothing was trained; look at the data and "
            "the model's dtype, or lower training.learning_rate."
        )
        self.step = steps
