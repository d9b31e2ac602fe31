"""`Descent`: Gauss-Newton steps on the error at the end, with slopes that runs correct."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from erta_framework.calibration import GRADIENT_CALLS
from erta_framework.errors import CapabilityError
from erta_policies.fitted._slopes import Slopes

NUDGE = 1e-3
"""By how much a weight is moved for its slope."""
FAR = 2.0
"""A run that ended so many powers of ten worse than the best says nothing of the slopes here."""


class RunWith(Protocol):
    """Samples with weights."""

    def __call__(self, rows: Tensor, *, keep: bool = False) -> Tensor:
        """Samples `[N, C, ...]` at the end of a run.

        Args:
            rows: Weights of velocities, latents and displacement by step, `[T, C, n + 2]`.
            keep: The next runs begin like this one, so that its network calls can be kept.
        """
        ...


Differentiate = Callable[[Tensor], tuple[Tensor, Sequence[Tensor]]]
"""From weights `[T, C, n + 2]` to samples at the end, `[N, C, ...]`, and the weights of each batch
`[B, T, C, n + 2]`, once for each sample, which their graph leads to."""


class Descent:
    """Weights, where a run with them ends, and what is known of the slopes there.

    Args:
        rows: Weights of velocities, latents and displacement by step, `[T, C, n + 2]`.
        moves: The changes of the weights that are combined.
        run: Samples with weights.
        goal: Where the samples should end, `[N, C, ...]`.
        fitted: Which samples the steps are for, `[N]`.
        measure: What a step must make smaller, from all samples at the end.

    Attributes:
        rows: The best weights so far.
        best: What `measure` says of them.
        runs: Runs so far; one with its gradient counts `GRADIENT_CALLS`.
    """

    def __init__(
        self,
        rows: Tensor,
        moves: Sequence[Tensor],
        run: RunWith,
        goal: Tensor,
        fitted: Tensor,
        measure: Callable[[Tensor], float],
    ) -> None:
        self.rows, self._moves, self._run = rows, moves, run
        self._goal, self._fitted, self._measure = goal.double(), fitted, measure
        base = run(rows, keep=True)
        nudge = max(NUDGE, 4 * torch.finfo(base.dtype).eps)  # above the rounding of the latents
        self.best, self._apart = measure(base), self._subtract_goal(base)
        self._slopes = Slopes.of(
            [(run(rows + nudge * move) - base)[fitted] / nudge for move in moves]
        )
        self.runs = 1 + len(moves)

    def try_changes(self) -> bool:
        """One step: a run for each damping, of which the best is kept; whether it is better."""
        tried = []
        for change in self._slopes.solve(self._apart):
            ends = self._run(self._combine(change))
            tried.append((self._measure(ends), change, self._subtract_goal(ends)))
        self.runs += len(tried)
        # the best one last, so that the slopes are right for it
        tried.sort(key=lambda each: -each[0])
        for found, change, apart in tried:
            if found < self.best + FAR:
                self._slopes.correct_for(change, apart - self._apart)
        found, change, apart = tried[-1]
        if not found < self.best:
            return False
        self.rows, self.best, self._apart = self._combine(change), found, apart
        return True

    def take_gradient(self, differentiate: Differentiate) -> str:
        """Correct the slopes by the gradient; why that cannot be done, or empty.

        The network may let no gradients through, or the device may have no memory for them.

        Args:
            differentiate: Samples with the gradient of weights.
        """
        self.runs += GRADIENT_CALLS
        try:
            ends, leaves = differentiate(self.rows)
            loss = self._subtract_goal(ends).square().sum() / 2
            found = torch.cat(torch.autograd.grad(loss, list(leaves)))[self._fitted]
        except (CapabilityError, RuntimeError) as error:  # what torch raises for all of it
            return (str(error) or type(error).__name__).splitlines()[0]
        along = [(found * move).flatten(1).sum(dim=1) for move in self._moves]
        self._slopes.correct_along(self._apart, torch.stack(along, dim=1))
        return ""

    def _combine(self, change: Tensor) -> Tensor:
        """The weights with changes along the moves."""
        parts = [c * move for c, move in zip(change.tolist(), self._moves, strict=True)]
        return self.rows + torch.stack(parts).sum(dim=0)

    def _subtract_goal(self, ends: Tensor) -> Tensor:
        """How far the samples that the steps are for are from the goal, `[N, elements]`."""
        return (ends.double() - self._goal)[self._fitted].flatten(1)
