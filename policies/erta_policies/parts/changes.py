"""The tensor whose change a rule looks at, and what is remembered of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from erta_framework import Call
from erta_policies.parts.accumulator import Accumulator
from erta_policies.parts.signals import relative_l1

Signal = Literal["modulated_input", "timestep_embedding", "timestep_projection", "latents"]
TIMES = ("timestep_embedding", "timestep_projection")
"""Signals that depend on the step alone, neither on the latents nor on the branch."""


@dataclass(slots=True)
class Memory:
    """The signal of the newest step, and the predicted change since the last computed one.

    Attributes:
        index: That step.
        signal: Its signal.
        changes: Sum of each sample's predicted changes.
    """

    index: int = -1
    signal: Tensor | None = None
    changes: Accumulator = field(default_factory=Accumulator)

    def moved(self, index: int, now: Tensor, per_sample: bool) -> Tensor | None:
        """Relative L1 change since the step before, `[B]` or `[1]`; None if that is not known.

        The signal is kept for the next step, whatever is decided now.
        """
        before = self.signal if self.index == index - 1 else None
        self.keep(index, now)
        if before is None or before.shape != now.shape:
            return None
        return relative_l1(now, before, per_sample)

    def keep(self, index: int, now: Tensor) -> None:
        """Remember the signal of a step."""
        self.index, self.signal = index, now.clone()


def required(signal: Signal) -> frozenset[str]:
    """The capability that a driver must offer for a signal."""
    return frozenset() if signal == "latents" else frozenset({f"signal:{signal}"})


def read(signal: Signal, call: Call) -> Tensor:
    """The signal of a call, `[B, ...]`."""
    return call.x if signal == "latents" else call.feature(signal)
