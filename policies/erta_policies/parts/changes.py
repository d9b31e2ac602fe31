"""The tensor whose change a rule looks at, and what is remembered of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from erta_framework import Call
from erta_framework.metrics import relative_l1
from erta_policies.parts.accumulator import Accumulator

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
        ahead: The difference into every step, where it is known beforehand.
        looked: Whether that was asked for.
    """

    index: int = -1
    signal: Tensor | None = None
    changes: Accumulator = field(default_factory=Accumulator)
    ahead: list[list[float]] = field(default_factory=list)
    looked: bool = False

    def look_ahead(self, signals: Tensor, per_sample: bool) -> None:
        """Take the differences of all neighbouring steps, from the signal of each, `[T, ...]`.

        One number a step is read back to the host, all at once.
        """
        pairs = zip(signals[1:], signals[:-1], strict=True)
        found = [relative_l1(now, before, per_sample) for now, before in pairs]
        self.ahead = [[], *torch.stack(found).tolist()] if found else []

    def moved(self, index: int, now: Tensor, per_sample: bool) -> Tensor | None:
        """Relative L1 change since the step before, `[B]` or `[1]`; None if that is not known.

        The signal is kept for the next step, whatever is decided now.
        """
        before = self.signal if self.index == index - 1 else None
        self.keep(index, now)
        if before is None or before.shape != now.shape:
            return None
        return relative_l1(now, before, per_sample)

    def known(self, index: int) -> list[float]:
        """The difference into a step that is known beforehand; its signal is not looked at."""
        self.index, self.signal = index, None
        return self.ahead[index]

    def keep(self, index: int, now: Tensor) -> None:
        """Remember the signal of a step."""
        self.index, self.signal = index, now.clone()


def required(signal: Signal) -> frozenset[str]:
    """The capability that a driver must offer for a signal."""
    return frozenset() if signal == "latents" else frozenset({f"signal:{signal}"})


def read(signal: Signal, call: Call) -> Tensor:
    """The signal of a call, `[B, ...]`."""
    return call.x if signal == "latents" else call.feature(signal)
