"""How much a flow amplifies a small difference of the latents, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from erta_framework.calibration import Solution, divide_steps
from erta_framework.sampling import Sampler, TextModel, make_second_order

SIZE: Final = 1e-3
"""Length of the differences, relative to the latents."""


@dataclass(frozen=True, slots=True, eq=False)
class AccurateRuns:
    """Takes latents of any step to the end, by second-order steps.

    Attributes:
        sampler: Says schedule, guidance and process; its policies are not used.
        model: The model.
        prompts: One a sample.
    """

    sampler: Sampler
    model: TextModel
    prompts: Sequence[str]

    def finish(self, latents: Tensor, first: int, substeps: int = 1) -> Tensor:
        """The samples at the end, `[N, C, ...]`.

        Args:
            latents: Before the step `first`, `[N, C, ...]`.
            first: Index of the step.
            substeps: Steps for each step of the schedule.
        """
        second, least = make_second_order(self.sampler.solver)
        grid = divide_steps(self.sampler.schedule.sigmas, substeps, least)
        twin = self.sampler.with_policies((), callbacks=(), solver=second, sigmas=grid)
        return twin.sample(
            self.model, self.prompts, latents=latents, first=first * substeps
        ).samples

    def amplify(
        self, latents: Tensor, first: int, directions: Sequence[Tensor], end: Tensor
    ) -> Tensor:
        """How many times longer a small difference before a step is at the end, `[D, N]`.

        Of a flow whose velocity is affine it is the same in all directions: the factor by which
        the deviation of the latents shrinks or grows.

        Args:
            latents: Before the step `first`, `[N, C, ...]`.
            first: Index of the step.
            directions: D differences, each `[N, C, ...]`, of any length.
            end: Where the latents end without one, by `finish`.
        """
        found = []
        for direction in directions:
            size = SIZE * measure_length(latents) / measure_length(direction)
            moved = latents + direction * size.reshape(-1, *[1] * (latents.ndim - 1))
            # what is left of the difference after rounding, not what was asked for
            made = measure_length(moved.double() - latents.double())
            apart = measure_length(self.finish(moved, first).double() - end.double())
            found.append(apart / made)
        return torch.stack(found)


def find_bend(solution: Solution, step: int) -> Tensor:
    """The direction in which the path of each sample bends at a step, `[N, C, ...]`.

    A first-order step errs in this direction, and a solver of higher order begins with it.
    """
    place = min(max(step, 1), len(solution.sigmas) - 2)
    before, here, after = (solution.latents[:, place + k] for k in (-1, 0, 1))
    (a, b, c) = solution.sigmas[place - 1 : place + 2]
    return (after - here) / (c - b) - (here - before) / (b - a)


def measure_length(values: Tensor) -> Tensor:
    """The length of each sample, `[N]`."""
    found: Tensor = values.flatten(1).norm(dim=1)
    return found


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation of two lists of numbers `[N]`; ties are ranked as they come.

    Example:
        >>> round(rank_correlation(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.1, 0.2, 0.3])), 6)
        1.0
    """
    ranks = torch.stack([values.argsort().argsort().double() for values in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def fit_line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Slope of the line through points `[N]`, and the share of the variance that it explains.

    Example:
        >>> slope, share = fit_line(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 3.0, 5.0]))
        >>> round(slope, 6), round(share, 6)
        (2.0, 1.0)
    """
    a, b = (values.double() - values.double().mean() for values in (x, y))
    slope = float((a * b).sum() / a.square().sum())
    return slope, float((slope * a).square().sum() / b.square().sum())
