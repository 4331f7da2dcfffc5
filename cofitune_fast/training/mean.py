"""A running mean."""

from __future__ import annotations

from torch import Tensor


class Mean:
    """Running mean of numbers that stay on the device until `value` is read."""

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._count = 0

    def add(self, number: Tensor) -> None:
        self._sum, self._count = self._sum + number, self._count + 1

    @property
    def value(self) -> float | None:
        return float(self._sum) / self._count if self._count else None

    @property
    def sum(self) -> float:
        return float(self._sum)

    def state(self) -> list[float]:
        """Return [sum, count] for JSON."""
        return [self.sum, self._count]

    def load(self, state: list[float]) -> None:
        self._sum, self._count = state[0], int(state[1])
