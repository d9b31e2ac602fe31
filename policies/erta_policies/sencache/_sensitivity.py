"""How sensitive a network is to its latents and its timestep: sums, table and score.

To first order, f(x + dx, t + dt) - f(x, t) = Jx dx + Jt dt. At each timestep a number stands for
each of them: the norm of the output's change over that of the movement. Jt of a whole latent grows
with the square root of its number of elements. It is kept divided by that, which is ours, so that a
table serves latents of any size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erta_framework import Profile, SessionInfo
from erta_framework.calibration import Entry, ProfileKind, make_fingerprint
from erta_framework.errors import ProfileError

UNIT = "time_unit"
STATES = "states"
KIND = ProfileKind(
    "sensitivity_profiler",
    {
        "samples": Entry(shape="T", counts=True),
        "time": Entry(shape="T", least=None),
        **dict.fromkeys(("jx", "jt", "jx_squares", "jt_squares"), Entry(shape="T")),
    },
    facts=(UNIT, STATES),
)
TINY = 1e-8
"""Smallest movement that a sensitivity is measured over; below it counts as 0, as published."""
SUMS = ("samples", "time", "jx", "jt", "jx_squares", "jt_squares")


@dataclass(slots=True)
class SensitivitySums:
    """Running sums at each step of a schedule, `[T]`, in float64 on the host.

    Attributes:
        samples: Measured samples.
        time: Sum of the timesteps at which the network ran.
        jx: Sum of the latent sensitivities.
        jt: Sum of the time sensitivities, each over the square root of the number of elements.
        jx_squares: Sum of the squared latent sensitivities.
        jt_squares: Sum of the squared time sensitivities.
    """

    samples: Tensor
    time: Tensor
    jx: Tensor
    jt: Tensor
    jx_squares: Tensor
    jt_squares: Tensor

    @classmethod
    def empty(cls, num_steps: int) -> SensitivitySums:
        """Sums of nothing."""
        return cls(*torch.zeros(len(SUMS), num_steps, dtype=torch.float64))

    def add(self, index: int, time: float, jx: Tensor, jt: Tensor) -> None:
        """Add the sensitivities of every sample `[B]` at one step."""
        self.samples[index] += len(jx)
        self.time[index] += len(jx) * time
        for name, values in (("jx", jx.double().cpu()), ("jt", jt.double().cpu())):
            getattr(self, name)[index] += values.sum()
            getattr(self, f"{name}_squares")[index] += (values**2).sum()

    def profile(self, session: SessionInfo, states: str, samples: int) -> Profile:
        """The sums as a profile; `states` says at which latents they were measured."""
        facts = {UNIT: time_unit(session), STATES: states}
        made = Profile(
            kind=KIND.name,
            fingerprint={**make_fingerprint(session), **facts},
            statistics={name: getattr(self, name) for name in SUMS},
            samples=samples,
        )
        return KIND.check(made)


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """A table of sensitivities over the network's timestep.

    Attributes:
        times: Tabulated timesteps, in the unit of the network.
        jx: At each, by how much the output changes per change of the latents, both as 2-norms.
        jt: At each, the root mean square change of the output's elements per unit of time.

    Example:
        >>> table = Sensitivities((1000.0, 500.0), (0.8, 0.6), (0.001, 0.002))
        >>> table.near(700.0)
        (0.6, 0.002)
    """

    times: tuple[float, ...]
    jx: tuple[float, ...]
    jt: tuple[float, ...]

    @classmethod
    def of(cls, profile: Profile) -> Sensitivities:
        """The means of a profile at the steps that were measured.

        Raises:
            ProfileError: No step was.
        """
        sums: Mapping[str, Tensor] = profile.statistics
        seen = sums["samples"] > 0
        if not bool(seen.any()):
            raise ProfileError(
                f"{profile!r} holds no sensitivities; calibrate over whole runs of two or more "
                "steps"
            )
        count = sums["samples"][seen]
        means = [tuple((sums[name][seen] / count).tolist()) for name in ("time", "jx", "jt")]
        return cls(*means)

    def near(self, time: float) -> tuple[float, float]:
        """Jx and Jt at the tabulated timestep nearest to `time`; of two as near, the first."""
        place = min(range(len(self.times)), key=lambda k: abs(self.times[k] - time))
        return self.jx[place], self.jt[place]


def time_unit(session: SessionInfo) -> str:
    """The network's timestep at sigma 1: `"1000"` or `"1"` for flow-matching models."""
    return f"{session.time_of(1.0):.6g}"


def latent_norms(values: Tensor) -> Tensor:
    """2-norm of each sample in float32, `[B]`."""
    found: Tensor = values.float().flatten(1).norm(dim=1)
    return found


def latent_sensitivity(change: Tensor, moved: Tensor) -> Tensor:
    """`||change|| / ||moved||` of each sample, `[B]`; 0 where nothing moved.

    Args:
        change: Of the output, `[B, C, ...]`, at one timestep.
        moved: Of the latents, `[B, C, ...]`.
    """
    size, path = latent_norms(change), latent_norms(moved)
    return torch.where(path < TINY, 0.0, size / path.clamp_min(TINY))


def time_sensitivity(change: Tensor, elapsed: float) -> Tensor:
    """`||change|| / (|elapsed| sqrt(n))` of each sample, `[B]`, n its elements; 0 for no time.

    Args:
        change: Of the output, `[B, C, ...]`, at the same latents.
        elapsed: Difference of the timesteps.
    """
    if abs(elapsed) < TINY:
        return torch.zeros(change.shape[0])
    return latent_norms(change) / (abs(elapsed) * math.sqrt(change[0].numel()))


def score_change(jx: float, jt: float, moved: float, elapsed: float, shape: Sequence[int]) -> float:
    """First-order bound on the output's change since the reference, as a 2-norm.

    S = Jx * ||x - x_c|| + Jt * |t - t_c|, with Jt of the whole latent.

    Args:
        jx: Latent sensitivity at the reference.
        jt: Time sensitivity at the reference, per root of the number of elements.
        moved: ||x - x_c|| of one sample.
        elapsed: t - t_c.
        shape: Shape of one sample.
    """
    return jx * moved + jt * math.sqrt(math.prod(shape)) * abs(elapsed)


def scale_tolerance(eps: float, shape: Sequence[int]) -> float:
    """The bound of the score for a tolerance: `eps` an element, for a latent of this shape.

    Source: by our calculation, the scripts of vita-epfl/SenCache have `eps sqrt(n)` as constants.

    Example:
        >>> scale_tolerance(0.5, (16, 3, 4))
        6.928203230275509
    """
    return eps * math.sqrt(math.prod(shape))
