"""The published curve of the factor over a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from erta_framework.errors import PolicyError

HIGH, LOW, TURN = 0.98, 0.96, 0.4
"""b_h, b_l and t* of FEB-Cache (arXiv 2503.07120)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseCurve:
    """The factor of the noise by the part of the run that is left, as FEB-Cache publishes it.

    With t from 1 (the noisiest step) to 0 (the last): for t >= turn it is
    `high + (1 - high) * exp(-5 (1 - t) / (1 - turn))`, and below
    `low + (high - low) * exp(5 (t - turn) / (1 - turn))`. It is 1 at t = 1.

    Attributes:
        high: What it falls to in the noisy part, b_h.
        low: What it falls to at the end, b_l.
        turn: Where the second part begins, t*.

    Raises:
        PolicyError: A number is out of range.

    Example:
        >>> curve = NoiseCurve()
        >>> [round(curve.at(t), 3) for t in (1.0, 0.8, 0.5, 0.4, 0.2, 0.0)]
        [1.0, 0.984, 0.98, 0.98, 0.964, 0.961]
    """

    high: float = HIGH
    low: float = LOW
    turn: float = TURN

    def __post_init__(self) -> None:
        for name, value in {"high": self.high, "low": self.low}.items():
            if not 0.0 < value < math.inf:
                raise PolicyError(f"{name} of the noise curve is {value}; give a factor above 0")
        if not 0.0 <= self.turn < 1.0:
            raise PolicyError(f"turn of the noise curve is {self.turn}, it must lie in [0, 1)")

    def at(self, left: float) -> float:
        """The factor where this part of the run is left, from 1 to 0."""
        span = 1.0 - self.turn
        if left >= self.turn:
            return self.high + (1.0 - self.high) * math.exp(-5.0 * (1.0 - left) / span)
        return self.low + (self.high - self.low) * math.exp(5.0 * (left - self.turn) / span)
