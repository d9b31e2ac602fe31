"""What each scheduler of diffusers allows, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from erta_framework.errors import CapabilityError
from erta_framework.session import DDIM_LEVELS, STOCHASTIC
from erta_integrations.diffusers.pipeline._prediction import explain_noise

DDIM = ("DDIMScheduler", "DDIMParallelScheduler")
CHANGED = ("clip_sample", "thresholding", "rescale_betas_zero_snr")
"""Settings with which a step of DDIM is not linear, or starts from a latent without signal."""


class Support(StrEnum):
    """How far a scheduler can be driven."""

    TIME_WARP = "supported"
    CACHING = "supported without time-warp"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Capability:
    """Support for one scheduler class.

    Attributes:
        support: How far it can be driven.
        reason: Why no further.
    """

    support: Support
    reason: str


MULTISTEP = "a multistep solver remembers earlier outputs, so its grid cannot be moved"
HIGHER = "a step needs several network calls on a fixed grid"
ALPHAS = "the grid is integer training steps, not sigmas that could be moved"
RANDOM = "each step adds noise for its own fixed grid"
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
        RANDOM: (
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


def find_capability(scheduler: object) -> Capability:
    """Find what a scheduler allows; a class that is not in the table is never time-warped.

    Raises:
        CapabilityError: The scheduler cannot be driven; says why.
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


def capabilities(scheduler: object, eta: float = 0.0) -> frozenset[str]:
    """What policies may require of this scheduler.

    `first_order` and `velocity`: its step is one Euler step, so that steps may be moved.
    `DDIM_LEVELS`: its step integrates predicted noise from noise level to noise level.
    `STOCHASTIC`: its steps draw noise, which policies that need the same run twice refuse.

    Args:
        scheduler: Of a pipeline.
        eta: What the pipeline was called with; DDIM draws noise where it is above 0.

    Raises:
        CapabilityError: The scheduler cannot be driven; says why.
    """
    warp = find_capability(scheduler).support is Support.TIME_WARP
    config = getattr(scheduler, "config", {})
    if explain_noise(scheduler, eta):
        return frozenset({STOCHASTIC})
    if warp:
        return frozenset({"first_order", "velocity"})
    ddim = any(cls.__name__ in DDIM for cls in type(scheduler).__mro__)
    if ddim and config.get("prediction_type") == "epsilon" and not any(map(config.get, CHANGED)):
        return frozenset({DDIM_LEVELS})
    return frozenset()
