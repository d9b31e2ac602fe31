"""The signals whose change a rule measures, and what is remembered of one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from erta_framework import Call
from erta_framework.metrics import relative_l1
from erta_policies.shared._decisions import Accumulator

Signal = Literal["modulated_input", "timestep_embedding", "timestep_projection", "latents"]
TIMES = ("timestep_embedding", "timestep_projection")
"""Signals that depend on the step alone, neither on the latents nor on the branch."""


@dataclass(slots=True)
class SignalMemory:
    """The signal of the newest step, and the predicted change since the last computed one.

    Attributes:
        index: The newest step.
        signal: Its signal, `[B, ...]`; None where the changes are known ahead.
        changes: Sum of each sample's predicted changes.
        ahead: The change into every step, `[T][B or 1]`, where it is known ahead.
        looked: Whether `look_ahead` was tried.
    """

    index: int = -1
    signal: Tensor | None = None
    changes: Accumulator = field(default_factory=Accumulator)
    ahead: list[list[float]] = field(default_factory=list)
    looked: bool = False

    def look_ahead(self, signals: Tensor, per_sample: bool) -> None:
        """Measure the change into every step of the schedule from the signal of each, `[T, ...]`.

        All values are read back to the host at once.
        """
        pairs = zip(signals[1:], signals[:-1], strict=True)
        found = [relative_l1(now, before, per_sample) for now, before in pairs]
        self.ahead = [[], *torch.stack(found).tolist()] if found else []

    def measure_change(self, index: int, now: Tensor, per_sample: bool) -> Tensor | None:
        """Relative L1 change since the step before, `[B]` or `[1]`; None without that step.

        Keeps the signal for the next step, whatever is decided now.
        """
        before = self.signal if self.index == index - 1 else None
        self.keep(index, now)
        if before is None or before.shape != now.shape:
            return None
        return relative_l1(now, before, per_sample)

    def take_ahead(self, index: int) -> list[float]:
        """The change into a step that is known ahead; the signal itself is not read."""
        self.index, self.signal = index, None
        return self.ahead[index]

    def keep(self, index: int, now: Tensor) -> None:
        """Remember the signal of a step."""
        self.index, self.signal = index, now.clone()


def signal_capability(signal: Signal) -> frozenset[str]:
    """The capability that a driver must offer for a signal; none for the latents."""
    return frozenset() if signal == "latents" else frozenset({f"signal:{signal}"})


def read_signal(signal: Signal, call: Call) -> Tensor:
    """The signal of a call, `[B, ...]`."""
    return call.x if signal == "latents" else call.feature(signal)
