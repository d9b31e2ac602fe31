"""When a block's input has hardly moved: three tests, and the one that was published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from erta_framework.errors import PolicyError
from erta_policies.shared import SurrogateTable, measure_drift, measure_norms

TestName = Literal["threshold", "calibrated", "adaptive"]
Freedom = Literal["tokens", "spectrum"]
Spread = Literal["drift", "variance"]
BETAS = (0.01, 0.5, -0.002, 5e-5)
"""Published coefficients of the adaptive threshold."""


@dataclass(frozen=True, slots=True, eq=False)
class Movement:
    """The input of a block now, and that with which it last ran.

    Attributes:
        now: `[B, N, C]`.
        kept: The same of the step at which it last ran.
        path: The block.
        stream: Which of its streams they are.
        progress: The part of the steps that are done, 0 in the first and 1 in the last.
    """

    now: Tensor
    kept: Tensor
    path: str
    stream: int
    progress: float


Test = Callable[[Movement], Tensor]
"""How far each sample has moved, of what it may, `[B]`: up to 1 the block is reused."""


def find_chi_square_ratio(freedom: float, level: float) -> float:
    """The quantile of chi-square over its degrees of freedom, by Wilson and Hilferty.

    `(1 - 2 / (9 v) + z sqrt(2 / (9 v)))^3` with the quantile z of the normal distribution; within
    1 % from 3 degrees of freedom on.

    Args:
        freedom: Degrees of freedom, v.
        level: Probability above the quantile, alpha.

    Raises:
        PolicyError: The level is not between 0 and 1, or there is no degree of freedom.

    Example:
        >>> round(find_chi_square_ratio(256 * 1152, 0.05), 4)
        1.0043
    """
    if not 0.0 < level < 1.0 or not freedom > 0.0:
        raise PolicyError(
            f"a chi-square test got level={level} and {freedom} degrees of freedom; give a level "
            "between 0 and 1, and some freedom"
        )
    spread = 2.0 / (9.0 * freedom)
    root: float = 1.0 - spread + NormalDist().inv_cdf(1.0 - level) * spread**0.5
    return max(root, 0.0) ** 3


def accept_as_published(drift: Tensor, numbers: int, level: float = 0.05) -> Tensor:
    """The published test, `drift^2 <= chi2(ND, 1 - alpha) / ND`; it is not used.

    With the thousands of numbers N D of a block's input the bound is 1 to two digits, whatever
    alpha. So it asks whether the input has changed by less than all of it, and accepts.

    Args:
        drift: Relative changes.
        numbers: Numbers in the input of a sample, N D.
        level: Alpha.

    Example:
        >>> accept_as_published(torch.tensor([0.01, 0.5, 0.99]), 256 * 1152)
        tensor([True, True, True])
    """
    return drift.square() <= find_chi_square_ratio(numbers, level)


# ------------------------------------------------------------------------------ in use
@dataclass(frozen=True, slots=True)
class ThresholdTest:
    """`||H - H'|| / ||H'|| <= threshold`: the rule that the released code comes down to.

    Attributes:
        threshold: Largest drift; 0 or less never reuses.
    """

    threshold: float

    def __call__(self, movement: Movement) -> Tensor:
        drift = measure_drift(movement.now, movement.kept, over="whole")
        return compare(drift, torch.full_like(drift, self.threshold))


@dataclass(frozen=True, slots=True)
class CalibratedTest:
    """`||H - H'||^2 / (s N D) <= chi2(v, 1 - alpha) / v`: the honest form of the published test.

    A chi-square test needs the variance of what does not count, which a relative change is not.
    Here s is a low quantile of how far the block's input moves in one step of the calibration runs,
    each number in the mean square. And numbers that move together are no degrees of freedom.

    Attributes:
        table: The profile.
        level: Alpha.
        quantile: Which quantile of movement is taken as that of an unchanged input.
        freedom: What counts as a degree of freedom v: every token, or every direction of the
            channels in which the input moves, `(sum e)^2 / sum e^2` of the eigenvalues of dH'dH.
    """

    table: SurrogateTable
    level: float
    quantile: float
    freedom: Freedom

    def __post_init__(self) -> None:
        find_chi_square_ratio(1.0, self.level)
        if not 0.0 < self.quantile <= 1.0:
            raise PolicyError(f"quantile is {self.quantile}; it must be above 0 and at most 1")
        if self.freedom not in ("tokens", "spectrum"):
            raise PolicyError(f"freedom is {self.freedom!r}; give tokens or spectrum")

    def __call__(self, movement: Movement) -> Tensor:
        path, stream = movement.path, movement.stream
        variance = self.table.find_innovation(path, stream, self.quantile)
        freedom = float(movement.now.shape[1])
        if self.freedom == "spectrum":
            freedom = self.table.count_dimensions(path, stream)
        change = movement.now.float() - movement.kept.float()
        bound = variance * find_chi_square_ratio(freedom, self.level)
        square = change.flatten(1).square().mean(dim=1)
        return compare(square, torch.full_like(square, bound))


@dataclass(frozen=True, slots=True)
class AdaptiveTest:
    """`||H - H'|| / ||H'|| <= max(floor, b0 + b1 S + b2 t + b3 t^2)`, as published.

    Attributes:
        betas: The coefficients.
        floor: Least threshold; 0.05 in the released code, which the formula hardly exceeds.
        spread: What S is: the drift itself, as in the released code, or the variance over tokens
            of their squared movement, relative to that of the token that moves most.
    """

    betas: tuple[float, float, float, float]
    floor: float
    spread: Spread

    def __post_init__(self) -> None:
        if self.spread not in ("drift", "variance"):
            raise PolicyError(f"spread is {self.spread!r}; give drift or variance")

    def __call__(self, movement: Movement) -> Tensor:
        drift = measure_drift(movement.now, movement.kept, over="whole")
        varied = (
            drift if self.spread == "drift" else measure_saliency(movement).var(1, correction=0)
        )
        b0, b1, b2, b3 = self.betas
        t = movement.progress
        threshold = b0 + b1 * varied + b2 * t + b3 * t * t
        return compare(drift, threshold.clamp(min=self.floor))


def measure_saliency(movement: Movement) -> Tensor:
    """The squared movement of every token, of that of the one that moves most, `[B, N]`."""
    moved = measure_norms(movement.now.float() - movement.kept.float()).square()
    largest = moved.amax(dim=1, keepdim=True)
    return torch.where(largest > 0, moved / largest, 0.0)


def compare(value: Tensor, bound: Tensor) -> Tensor:
    """A value by its bound; infinite where that is not above 0."""
    return torch.where(bound > 0, value / bound, torch.inf)
