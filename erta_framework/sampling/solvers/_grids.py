"""Sigma grids: where the steps lie. Each falls strictly and ends at exactly 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from erta_framework.errors import InputError
from erta_framework.sampling.solvers._protocol import (
    as_sigmas,
    check_falling,
    check_positive,
    check_steps,
)
from erta_framework.sampling.solvers._variance_preserving import ContinuousVP, DiscreteVP


class Grid(Protocol):
    """Makes the sigmas of a schedule. Grids are frozen dataclasses."""

    def sigmas(self, num_steps: int) -> tuple[float, ...]:
        """`num_steps + 1` sigmas that fall strictly and end at 0.

        Raises:
            InputError: There is no such grid.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shifted:
    """`shift * u / (1 + (shift - 1) * u)` of u uniform from 1 to 0, the grid of flow models.

    Raises:
        InputError: The shift is not positive and finite.
    """

    shift: float = 3.0

    def __post_init__(self) -> None:
        check_positive(shift=self.shift)

    def sigmas(self, num_steps: int) -> tuple[float, ...]:
        """From 1 to 0."""
        count = check_steps(num_steps)
        uniform = [1 - i / count for i in range(count + 1)]
        return tuple(self.shift * u / (1 + (self.shift - 1) * u) for u in uniform)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trailing:
    """Evenly spaced training timesteps that include the last (arXiv 2305.08891, `trailing`).

    Attributes:
        process: Whose training timesteps.
    """

    process: DiscreteVP

    def sigmas(self, num_steps: int) -> tuple[float, ...]:
        """Sigma at every chosen training timestep, then 0."""
        total = self.process.train_steps
        if num_steps > total:
            raise InputError(f"num_steps {num_steps} exceeds the {total} training steps")
        count, table = check_steps(num_steps), self.process.training_sigmas
        return (*(table[round(total * (1 - i / count)) - 1] for i in range(count)), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformTime:
    """Evenly spaced in the time of a continuous process, from 1 to `last_time`, then the end.

    Attributes:
        process: Whose time.
        last_time: Last time at which the network is evaluated; 1e-3 in score_sde for VP.

    Raises:
        InputError: The last time is not between 0 and 1.
    """

    process: ContinuousVP
    last_time: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.last_time < 1:
            raise InputError(f"last_time is {self.last_time}, it must be between 0 and 1")

    def sigmas(self, num_steps: int) -> tuple[float, ...]:
        """Sigma at every time, then 0."""
        times = torch.linspace(1.0, self.last_time, check_steps(num_steps), dtype=torch.float64)
        return as_sigmas(self.process.sigma_at(times * self.process.time_scale).tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class Karras:
    """Evenly spaced in `sigma^(1 / rho)`, then 0 (EDM, arXiv 2206.00364, eq. 5).

    Attributes:
        sigma_max: First sigma.
        sigma_min: Last sigma above 0.
        rho: 7 in the paper; larger puts more steps near 0.

    Raises:
        InputError: A number is not positive and finite, or the range is empty.

    Example:
        >>> Karras(sigma_max=9.0, sigma_min=1.0, rho=2.0).sigmas(3)
        (9.0, 4.0, 1.0, 0.0)
    """

    sigma_max: float = 80.0
    sigma_min: float = 0.002
    rho: float = 7.0

    def __post_init__(self) -> None:
        check_positive(rho=self.rho)
        check_falling("sigma_max", self.sigma_max, "sigma_min", self.sigma_min)

    def sigmas(self, num_steps: int) -> tuple[float, ...]:
        """From `sigma_max` to `sigma_min`, then 0; one step goes from `sigma_max` to 0."""
        last = check_steps(num_steps) - 1
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        inner = ((high + i / last * (low - high)) ** self.rho for i in range(1, last))
        return as_sigmas([self.sigma_max, *inner, *([self.sigma_min] if last else [])])


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometric:
    """Evenly spaced in log sigma, then 0 (the VE SDE of arXiv 2011.13456).

    Attributes:
        sigma_max: First sigma.
        sigma_min: Last sigma above 0.

    Raises:
        InputError: A number is not positive and finite, or the range is empty.

    Example:
        >>> Geometric(sigma_max=4.0, sigma_min=1.0).sigmas(3)
        (4.0, 2.0, 1.0, 0.0)
    """

    sigma_max: float = 50.0
    sigma_min: float = 0.01

    def __post_init__(self) -> None:
        check_falling("sigma_max", self.sigma_max, "sigma_min", self.sigma_min)

    def sigmas(self, num_steps: int) -> tuple[float, ...]:
        """From `sigma_max` to `sigma_min`, then 0; one step goes from `sigma_max` to 0."""
        last = check_steps(num_steps) - 1
        ratio = self.sigma_min / self.sigma_max
        inner = (self.sigma_max * ratio ** (i / last) for i in range(1, last))
        return as_sigmas([self.sigma_max, *inner, *([self.sigma_min] if last else [])])
