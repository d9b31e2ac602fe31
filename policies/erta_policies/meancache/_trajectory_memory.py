"""The newest steps of a trajectory: where its latents were, and the velocities that moved them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from erta_framework import Call, Step

NEAR = 1e-6
"""Sigmas closer than this are one place: no slope is taken between them."""


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryEntry:
    """One step of one branch.

    Attributes:
        index: The step.
        sigma: Where the trajectory was.
        x: Latents before the step, `[B, C, ...]`.
        v: The branch's velocity there: the network's where it ran, else the predicted one.
        used: The velocity that the solver got.
    """

    index: int
    sigma: float
    x: Tensor
    v: Tensor
    used: Tensor

    def rows(self, rows: tuple[int, ...] | None) -> TrajectoryEntry:
        """The entry for some samples of the batch."""
        if rows is None:
            return self
        place = torch.tensor(rows, device=self.x.device)
        x, v, used = (value.index_select(0, place) for value in (self.x, self.v, self.used))
        return TrajectoryEntry(self.index, self.sigma, x, v, used)


@dataclass(slots=True)
class TrajectoryMemory:
    """The newest steps of one branch, oldest first, computed or not."""

    entries: list[TrajectoryEntry] = field(default_factory=list)

    def back(self, steps: int, call: Call, step: Step) -> TrajectoryEntry | None:
        """The entry so many steps back, the oldest where there are fewer; None without any."""
        earlier = [entry for entry in self.entries if entry.index < step.index]
        if not earlier:
            return None
        return earlier[max(0, len(earlier) - steps)].rows(call.rows)

    def add(self, step: Step, call: Call, v: Tensor, used: Tensor, keep: int) -> None:
        """Remember this step, for all samples or for those of the call."""
        if call.rows is None:
            self._append(step, call.x, v, used, keep)
            return
        # samples of a batch are answered in groups; the first group makes room for all
        if self.entries[-1].index != step.index:
            newest = self.entries[-1]
            self._append(step, newest.x, newest.v, newest.used, keep)
        place = torch.tensor(call.rows, device=call.x.device)
        room = self.entries[-1]
        for held, value in ((room.x, call.x), (room.v, v), (room.used, used)):
            held.index_copy_(0, place, value)

    def _append(self, step: Step, x: Tensor, v: Tensor, used: Tensor, keep: int) -> None:
        velocity = v.clone()
        integrated = velocity if used is v else used.clone()
        entry = TrajectoryEntry(step.index, step.interval.start, x.clone(), velocity, integrated)
        self.entries = [*self.entries, entry][-keep:]


def measure_slope(x: Tensor, sigma: float, earlier: TrajectoryEntry) -> Tensor | None:
    """MeanCache's correction `(u - v_r) / (sigma - sigma_r)`, measured since the step `earlier`.

    u is the mean velocity `(x - x_r) / (sigma - sigma_r)`. None where the two sigmas coincide.

    Args:
        x: Latents now, in the type to compute in.
        sigma: Sigma now.
        earlier: The step r.
    """
    length = sigma - earlier.sigma
    if abs(length) < NEAR:
        return None
    mean = (x - earlier.x.to(x.dtype)) / length
    return (mean - earlier.v.to(x.dtype)) / length
