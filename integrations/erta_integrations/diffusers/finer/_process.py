"""What a scheduler's steps integrate: how its latents are mixed, and the network's timestep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from erta_framework import Schedule
from erta_framework.errors import CapabilityError
from erta_framework.sampling.solvers import (
    DiscreteVP,
    Flow,
    Parametrisation,
    Process,
    VarianceExploding,
    interpolate_time,
)
from erta_integrations.diffusers.pipeline import (
    Levels,
    explain_noise,
    find_levels,
    mix_exploding,
    mix_flow,
    mix_noise_level,
    mix_ratio,
    read_prediction,
)

PROCESSES: Mapping[Levels, Process] = MappingProxyType(
    {
        mix_flow: Flow(),
        mix_noise_level: DiscreteVP(),
        mix_ratio: DiscreteVP(),
        mix_exploding: VarianceExploding(),
    }
)
"""Our process for each mixture; of a discrete one only the mixture is used, not its timesteps."""
CHANGED = ("clip_sample", "thresholding")
"""Settings with which a step does more than integrate."""
ROUNDING = 1.5
"""By how many training steps a timestep may differ from that of its sigma: some are rounded."""
REMEDY = "give the pipeline a deterministic scheduler of one network call a step, such as Euler's"


@dataclass(frozen=True, slots=True)
class SchedulerProcess:
    """What the steps of a scheduler integrate.

    Attributes:
        form: How the latents are mixed, and what the network predicts.
        levels: The factors of clean sample and noise at the scheduler's sigma.
        time_of: The network's timestep at the sigma of `form`.
        least: The smallest sigma of `form` that the network was trained at.
    """

    form: Parametrisation
    levels: Levels
    time_of: Callable[[float], float]
    least: float

    @classmethod
    def of(cls, scheduler: Any) -> SchedulerProcess:
        """Read it off a scheduler.

        Raises:
            CapabilityError: It draws noise, does more than integrate, or is not known.
        """
        name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
        noise = explain_noise(scheduler)
        changed = [key for key in CHANGED if config.get(key, False)]
        if noise or changed:
            why = f"{noise} draws noise" if noise else f"{name} has {changed[0]}=True"
            raise CapabilityError(f"there is no exact solution, because {why}; {REMEDY}")
        levels, prediction = find_levels(scheduler), read_prediction(scheduler)
        if levels is None or prediction not in PROCESSES[levels].predictions:
            raise CapabilityError(
                f"what {name} integrates is not known (its network predicts {prediction!r}), so "
                f"there is no exact solution; {REMEDY}"
            )
        form = Parametrisation(process=PROCESSES[levels], prediction=prediction)
        if levels is mix_flow:
            scale = float(config.get("num_train_timesteps", 1000))
            return cls(form, levels, Flow(time_scale=scale).time_of, 0.0)
        table = tuple(read_training_sigmas(scheduler))
        return cls(form, levels, lambda sigma: interpolate_time(table, sigma), table[0])

    def nodes(self, schedule: Schedule, name: str) -> tuple[float, ...]:
        """The sigmas of `form` on a scheduler's grid.

        Args:
            schedule: The grid.
            name: The scheduler, for messages.

        Raises:
            CapabilityError: A step stands still, the first latents are pure noise without a ratio,
                or the timesteps are not those of the sigmas.
        """
        mixed = [self.levels(sigma) for sigma in schedule.sigmas]
        if self.levels is mix_flow:
            found = schedule.sigmas
        elif min(alpha for alpha, _ in mixed) <= 0:
            raise CapabilityError(
                f"the first latents of {name} are noise without signal, so they have no exact "
                f"solution; set rescale_betas_zero_snr=False, or {REMEDY}"
            )
        else:
            found = tuple(level / alpha for alpha, level in mixed)
        for index in range(len(found) - 1):
            wanted, passed = self.time_of(found[index]), schedule.times[index]
            if found[index] == found[index + 1] or abs(wanted - passed) > ROUNDING:
                raise CapabilityError(
                    f"step {index} of {name} goes from {found[index]:g} to {found[index + 1]:g} at "
                    f"the timestep {passed:g} (that of its sigma is {wanted:g}), so it cannot be "
                    f"divided; {REMEDY}"
                )
        return found


def read_training_sigmas(scheduler: Any) -> list[float]:
    """The ratio of noise and clean part at every training timestep, rising.

    Raises:
        CapabilityError: The scheduler has no table of them.
    """
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise CapabilityError(
            f"{type(scheduler).__name__} has no alphas_cumprod, so the timesteps between its own "
            f"are not known; {REMEDY}"
        )
    kept = table.double()[table > 0]
    found: list[float] = ((1 - kept) / kept).sqrt().tolist()
    return found
