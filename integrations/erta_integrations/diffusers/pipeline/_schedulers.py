"""What each diffusers scheduler allows, and its schedule in our terms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import torch

from erta_framework import Interval, Schedule
from erta_framework.errors import CapabilityError
from erta_framework.session import DDIM_LEVELS

DDIM = ("DDIMScheduler", "DDIMParallelScheduler")
CHANGED = ("clip_sample", "thresholding", "rescale_betas_zero_snr")
"""Settings under which a step of DDIM is not linear, or starts without any signal."""


class Support(StrEnum):
    """How far a scheduler can be driven."""

    TIME_WARP = "supported"
    CACHING = "supported without time-warp"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Capability:
    """Support for one scheduler class, and why it goes no further."""

    support: Support
    reason: str


MULTISTEP = "a multistep solver remembers earlier outputs, so its grid cannot be moved"
HIGHER = "a step needs several network calls on a fixed grid"
ALPHAS = "the grid is integer training steps, not sigmas that could be moved"
STOCHASTIC = "each step adds noise for its own fixed grid"
DISCRETE = "it samples tokens, there is no latent residual"

_BY_REASON: Mapping[str, tuple[Support, tuple[str, ...]]] = MappingProxyType(
    {
        "one Euler step from sigma to sigma": (
            Support.TIME_WARP,
            ("FlowMatchEulerDiscreteScheduler",),
        ),
        "Euler on input scaled by its sigma, which the grid fixes beforehand": (
            Support.CACHING,
            ("EulerDiscreteScheduler", "EDMEulerScheduler", "FlowMapEulerDiscreteScheduler"),
        ),
        MULTISTEP: (
            Support.CACHING,
            (
                "UniPCMultistepScheduler",
                "DPMSolverMultistepScheduler",
                "DPMSolverSinglestepScheduler",
                "DEISMultistepScheduler",
                "EDMDPMSolverMultistepScheduler",
                "CosineDPMSolverMultistepScheduler",
                "SASolverScheduler",
                "LMSDiscreteScheduler",
                "IPNDMScheduler",
                "PNDMScheduler",
                "CogVideoXDPMScheduler",
                "HeliosScheduler",
            ),
        ),
        HIGHER: (
            Support.CACHING,
            (
                "HeunDiscreteScheduler",
                "FlowMatchHeunDiscreteScheduler",
                "KDPM2DiscreteScheduler",
                "KDPM2AncestralDiscreteScheduler",
                "DPMSolverSDEScheduler",
            ),
        ),
        ALPHAS: (
            Support.CACHING,
            (
                "DDIMScheduler",
                "DDIMParallelScheduler",
                "CogVideoXDDIMScheduler",
                "DDPMScheduler",
                "DDPMParallelScheduler",
                "UnCLIPScheduler",
                "LCMScheduler",
                "TCDScheduler",
                "DDPMWuerstchenScheduler",
                "SCMScheduler",
            ),
        ),
        STOCHASTIC: (
            Support.CACHING,
            (
                "EulerAncestralDiscreteScheduler",
                "LTXEulerAncestralRFScheduler",
                "FlowMatchLCMScheduler",
                "CMStochasticIterativeScheduler",
                "HeliosDMDScheduler",
            ),
        ),
        "its step has not been studied for time-warp": (
            Support.CACHING,
            ("MiniMaxH3Scheduler", "PiflowScheduler"),
        ),
        DISCRETE: (
            Support.REFUSED,
            (
                "AmusedScheduler",
                "VQDiffusionScheduler",
                "BlockRefinementScheduler",
                "DiscreteDDIMScheduler",
                "EntropyBoundScheduler",
            ),
        ),
        "a step needs two sigmas and a second network call at a third point": (
            Support.REFUSED,
            ("KarrasVeScheduler",),
        ),
        "it has a predictor and a corrector call and no single step": (
            Support.REFUSED,
            ("ScoreSdeVeScheduler",),
        ),
        "it jumps back and forth in time": (Support.REFUSED, ("RePaintScheduler",)),
        "it runs from clean to noise": (
            Support.REFUSED,
            ("DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"),
        ),
        "it denoises protein structures, not latents": (
            Support.REFUSED,
            ("RFD4ProteinaScheduler",),
        ),
    }
)
CAPABILITIES: Mapping[str, Capability] = MappingProxyType(
    {
        name: Capability(support, reason)
        for reason, (support, names) in _BY_REASON.items()
        for name in names
    }
)
"""Every scheduler class of diffusers 0.42.1."""


def capability_of(scheduler: object) -> Capability:
    """What this scheduler allows; a class that is not in the table is never time-warped.

    Raises:
        CapabilityError: It cannot be driven at all; says why.
    """
    for cls in type(scheduler).__mro__:
        if cls.__name__ in CAPABILITIES:
            found = CAPABILITIES[cls.__name__]
            if found.support is Support.REFUSED:
                raise CapabilityError(
                    f"{type(scheduler).__name__} cannot be accelerated: {found.reason}"
                )
            return found
    missing = [name for name in ("step", "set_timesteps") if not hasattr(scheduler, name)]
    if missing:
        raise CapabilityError(
            f"{type(scheduler).__name__} has no {' and no '.join(missing)}; "
            "a diffusers scheduler is needed"
        )
    return Capability(Support.CACHING, "the class is not in the table of known schedulers")


def capabilities(scheduler: object) -> frozenset[str]:
    """What policies may rely on under this scheduler; time-warp needs a first-order step.

    Under DDIM, predicted noise is integrated in one step from noise level to noise level unless the
    pipeline is asked for `eta` above 0, which shows at its steps only.
    """
    warp = capability_of(scheduler).support is Support.TIME_WARP
    config = getattr(scheduler, "config", {})
    if warp and not config.get("stochastic_sampling", False):
        return frozenset({"first_order", "velocity"})
    ddim = any(cls.__name__ in DDIM for cls in type(scheduler).__mro__)
    if ddim and config.get("prediction_type") == "epsilon" and not any(map(config.get, CHANGED)):
        return frozenset({DDIM_LEVELS})
    return frozenset()


def read_schedule(scheduler: Any) -> Schedule:
    """The scheduler's current grid as sigmas and network times; read once a request.

    Schedulers without sigmas give the noise level sqrt(1 - abar), or, where even that is
    missing, the part of the steps that remains.
    """
    times = [float(time) for time in scheduler.timesteps.tolist()]
    sigmas = getattr(scheduler, "sigmas", None)
    bare = sigmas is None and not hasattr(scheduler, "alphas_cumprod")
    if bare and len(times) > 1 and times[-1] == 0.0:
        times.pop()  # such a grid of continuous times holds the end of its last step too
    count = len(times)
    if isinstance(sigmas, torch.Tensor) and len(sigmas) >= count:
        grid = [float(sigma) for sigma in sigmas[: count + 1].tolist()]
    elif hasattr(scheduler, "alphas_cumprod"):
        table = scheduler.alphas_cumprod
        places = [min(max(int(time), 0), len(table) - 1) for time in times]
        grid = [math.sqrt(max(0.0, 1.0 - float(table[place]))) for place in places]
    else:
        grid = [1.0 - index / count for index in range(count)]
    if len(grid) == count:
        final = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
        grid.append(math.sqrt(max(0.0, 1.0 - final)))
    return Schedule(tuple(grid), (*times, 0.0))


def first_index(scheduler: Any, timestep: torch.Tensor | None, schedule: Schedule) -> int:
    """The step at which this request starts; img2img starts later than 0.

    Taken from `begin_index`, else from the timestep that the network is told, which pipelines give
    as t, t / 1000 or 1 - t / 1000. What may be the first step in one unit and a later one in
    another is the first.
    """
    begin = getattr(scheduler, "begin_index", None)
    if begin is not None:
        return int(begin)
    if timestep is None:
        return 0
    told = float(timestep.max())  # tokens that are clean already are told 0
    later = 0
    for unit, offset, tolerance in ((1.0, 0.0, 1e-2), (1e-3, 0.0, 1e-5), (-1e-3, 1.0, 1e-5)):
        apart = [abs(told - (offset + unit * time)) for time in schedule.times[:-1]]
        nearest = min(range(len(apart)), key=apart.__getitem__)
        if apart[0] <= tolerance:
            return 0
        if apart[nearest] <= tolerance:
            later = later or nearest
    return later


def index_of(scheduler: Any, timestep: Any, schedule: Schedule, expected: int) -> int | None:
    """The step that `scheduler.step(_, timestep, _)` belongs to, without reading a device tensor.

    A view of `scheduler.timesteps` tells its place; other CPU values are compared, and are
    ambiguous where a grid repeats a time. None where it cannot be told.
    """
    grid = scheduler.timesteps
    if isinstance(timestep, torch.Tensor):
        # a view knows what it was taken from; asking for storages takes microseconds
        if timestep._base is grid or (
            timestep.untyped_storage().data_ptr() == grid.untyped_storage().data_ptr()
        ):
            return int(timestep.storage_offset()) - int(grid.storage_offset())
        if timestep.device.type != "cpu" or timestep.numel() != 1:
            return None
    value = float(timestep)
    if value == schedule.times[expected]:
        return expected
    matches = [i for i, time in enumerate(schedule.times[:-1]) if time == value]
    return matches[0] if len(matches) == 1 else None


def same_grid(a: Any, b: Any) -> bool:
    """Whether two schedulers go through the same sigmas; read before either is moved."""
    return a.sigmas.shape == b.sigmas.shape and torch.equal(a.sigmas, b.sigmas)


def move_interval(scheduler: Any, settled: Interval) -> None:
    """Write a moved end into the scheduler's grid, in place: pipelines iterate views of it."""
    following = settled.index + 1
    scheduler.sigmas[following] = settled.end
    if following < scheduler.timesteps.shape[0]:
        scheduler.timesteps[following] = settled.end_time
