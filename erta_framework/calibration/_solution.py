"""`Solution`: where samples really go, from a run on a much finer grid, to calibrate against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from erta_framework.errors import InputError

CLOSE = 1e-5
"""Largest relative difference of two sigmas that are the same."""
ORDER = 2
"""Order of the integrator: half of the step size is a quarter of the error."""


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """Nearly exact latents of samples at the sigmas of a schedule.

    A run of 50 steps has a discretisation error of its own. Who imitates it imitates that error
    too. A solution is what all such runs approach as their steps become smaller.

    Attributes:
        sigmas: Sigmas of the schedule, T + 1.
        latents: At each of them, `[N, T + 1, C, ...]`; those at the first are the noise.
        error: Mean squared error of the latents at the end, as estimated, over samples and
            elements.
        substeps: Steps of the fine run for each step of the schedule.
        calls: Network calls that it took a sample and branch.
        finished: The samples at the end as the sampler returns them, where that has another layout
            than the latents; None where it is the same.

    Raises:
        InputError: The latents are not those of so many sigmas.

    Example:
        >>> latents = torch.zeros(1, 3, 2, 4, 4)
        >>> Solution((1.0, 0.5, 0.0), latents, 0.0, substeps=8, calls=24).find(latents[:, 0]).shape
        torch.Size([1, 3, 2, 4, 4])
    """

    sigmas: tuple[float, ...]
    latents: Tensor
    error: float
    substeps: int
    calls: int
    finished: Tensor | None = None

    def __post_init__(self) -> None:
        if self.latents.ndim < 3 or self.latents.shape[1] != len(self.sigmas):
            raise InputError(
                f"a solution at {len(self.sigmas)} sigmas has latents [N, {len(self.sigmas)}, C, "
                f"...], got {tuple(self.latents.shape)}"
            )

    @property
    def samples(self) -> Tensor:
        """The samples at the end, as the sampler returns them, `[N, ...]`."""
        return self.latents[:, -1] if self.finished is None else self.finished

    def find(self, noise: Tensor) -> Tensor:
        """The latents of the samples that start from this noise, `[B, T + 1, C, ...]`.

        Args:
            noise: Latents at the first sigma, `[B, C, ...]`.

        Raises:
            InputError: There is no such sample.
        """
        known = self.latents[:, 0].to(noise)
        places = []
        for row, one in enumerate(noise):
            same = (known == one).flatten(1).all(dim=1) if known.shape[1:] == one.shape else None
            if same is None or not bool(same.any()):
                raise InputError(
                    f"the solution of {len(known)} samples {tuple(known.shape[1:])} has none that "
                    f"starts from the noise of sample {row} {tuple(one.shape)}; solve the same "
                    "samples, with the same seeds"
                )
            places.append(int(same.nonzero()[0]))
        return self.latents[torch.tensor(places)].to(noise.device)

    def require_sigmas(self, sigmas: Sequence[float]) -> None:
        """Refuse a run on other sigmas.

        Raises:
            InputError: Names the first that differs.
        """
        if len(sigmas) != len(self.sigmas):
            raise InputError(
                f"the solution is at {len(self.sigmas) - 1} steps, the run has {len(sigmas) - 1}; "
                "solve on the schedule of the run"
            )
        for index, (own, other) in enumerate(zip(self.sigmas, sigmas, strict=True)):
            if abs(own - other) > CLOSE * max(1.0, abs(own)):
                raise InputError(
                    f"the solution is at sigma {own:g} at step {index}, the run at {other:g}; "
                    "solve on the schedule of the run"
                )

    @classmethod
    def of_runs(
        cls,
        sigmas: Sequence[float],
        rough: Tensor,
        fine: Tensor,
        substeps: int,
        finished: Tensor | None = None,
    ) -> Solution:
        """From two second-order runs, one with half as many steps as the other.

        With half as many steps the error is four times as large. So a third of the difference of
        both is the error of the finer one.

        Args:
            sigmas: Sigmas of the schedule, T + 1.
            rough: Latents of the rougher run at them, `[N, T + 1, C, ...]`.
            fine: Those of the finer run.
            substeps: Steps of the finer run for each step of the schedule.
            finished: The finer run's samples as the sampler returns them, if in another layout.

        Raises:
            InputError: The runs began with other noise.
        """
        if rough.shape != fine.shape or not torch.equal(rough[:, 0], fine[:, 0]):
            raise InputError(
                "the two runs of a solution began with other noise; give both the same seeds, with "
                "a new generator for each run"
            )
        error = (fine[:, -1].double() - rough[:, -1].double()) / (2**ORDER - 1)
        calls = (len(sigmas) - 1) * (substeps + substeps // 2)
        return cls(tuple(sigmas), fine, float(error.square().mean()), substeps, calls, finished)

    @classmethod
    def merge(cls, parts: Sequence[Solution]) -> Solution:
        """Those of several batches on one schedule."""
        first = parts[0]
        for part in parts[1:]:
            part.require_sigmas(first.sigmas)
        total = sum(len(part.latents) for part in parts)
        error = sum(part.error * len(part.latents) for part in parts) / total
        latents = torch.cat([part.latents for part in parts])
        ends = [part.finished for part in parts if part.finished is not None]
        finished = torch.cat(ends) if ends else None
        return cls(first.sigmas, latents, error, first.substeps, first.calls, finished)


def check_substeps(substeps: int) -> None:
    """Refuse numbers of steps that have no half.

    Raises:
        InputError: It is not even, or below 2.
    """
    if substeps < 2 or substeps % 2:
        raise InputError(f"substeps is {substeps}, it must be an even number from 2")


def divide_steps(sigmas: Sequence[float], count: int, least: float = 0.0) -> tuple[float, ...]:
    """A grid with `count` steps for each, of equal size in sigma / (1 + sigma).

    That is finite for flows and for ratios of noise and clean part. The given sigmas stay exact.

    Args:
        sigmas: To divide.
        count: Steps for each.
        least: The smallest sigma that the network knows. The step that passes it has a node there,
            and none below.

    Example:
        >>> divide_steps((1.0, 0.0), 2)
        (1.0, 0.3333333333333333, 0.0)
        >>> divide_steps((1.0, 0.0), 2, least=0.1)
        (1.0, 0.1, 0.0)
    """
    found = []
    for start, end in pairwise(sigmas):
        passes = end < least < start and count > 1
        parts = count - 1 if passes else count
        low, high = (share / (1 + share) for share in (least if passes else end, start))
        shares = [high + (low - high) * part / parts for part in range(1, parts)]
        found += [start, *(share / (1 - share) for share in shares)]
        found += [least] if passes else []
    return (*found, sigmas[-1])
