"""`Solution`: where samples really go, from a run on a much finer grid, to calibrate against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erta_framework.errors import InputError

CLOSE = 1e-5
"""Largest relative difference of two sigmas that are the same."""


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

    def __post_init__(self) -> None:
        if self.latents.ndim < 3 or self.latents.shape[1] != len(self.sigmas):
            raise InputError(
                f"a solution at {len(self.sigmas)} sigmas has latents [N, {len(self.sigmas)}, C, "
                f"...], got {tuple(self.latents.shape)}"
            )

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
    def merge(cls, parts: Sequence[Solution]) -> Solution:
        """Those of several batches on one schedule."""
        first = parts[0]
        for part in parts[1:]:
            part.require_sigmas(first.sigmas)
        total = sum(len(part.latents) for part in parts)
        error = sum(part.error * len(part.latents) for part in parts) / total
        latents = torch.cat([part.latents for part in parts])
        return cls(first.sigmas, latents, error, first.substeps, first.calls)
