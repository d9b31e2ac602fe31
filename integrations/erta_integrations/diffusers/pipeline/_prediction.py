"""What a pipeline's network predicts, and whether its scheduler draws noise."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

WORDS: Mapping[str, str] = MappingProxyType(
    {
        "epsilon": "epsilon",
        "sample": "sample",
        "v_prediction": "v_prediction",
        "flow_prediction": "velocity",
        # TrigFlow's output is v of latents on the circle (arXiv 2410.11081)
        "trigflow": "v_prediction",
    }
)
"""Our word for each `prediction_type` of diffusers."""

BY_CLASS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "FlowMatchEulerDiscreteScheduler",
                "FlowMatchHeunDiscreteScheduler",
                "FlowMatchLCMScheduler",
                "FlowMapEulerDiscreteScheduler",
                "LTXEulerAncestralRFScheduler",
                "MiniMaxH3Scheduler",
                "PiflowScheduler",
            ),
            "velocity",
        ),
        "DDPMWuerstchenScheduler": "epsilon",
        "CMStochasticIterativeScheduler": "sample",
        "IPNDMScheduler": "v_prediction",
    }
)
"""Schedulers without a `prediction_type`."""

ALWAYS = (
    "CMStochasticIterativeScheduler",
    "CogVideoXDPMScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DDPMWuerstchenScheduler",
    "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeliosDMDScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "LTXEulerAncestralRFScheduler",
    "SASolverScheduler",
    "SCMScheduler",
    "TCDScheduler",
    "UnCLIPScheduler",
)
"""Schedulers whose steps draw noise with their usual settings."""

TAKE_ETA = ("DDIMScheduler", "DDIMParallelScheduler", "CogVideoXDDIMScheduler")
"""Schedulers whose steps draw noise where the pipeline is called with `eta` above 0."""


def read_prediction(scheduler: Any) -> str:
    """What the network of this scheduler predicts, in our words; empty where nobody says.

    Example:
        >>> from diffusers import DDIMScheduler, UniPCMultistepScheduler
        >>> read_prediction(DDIMScheduler(prediction_type="v_prediction"))
        'v_prediction'
        >>> read_prediction(UniPCMultistepScheduler(prediction_type="flow_prediction"))
        'velocity'
    """
    said = getattr(scheduler, "config", {}).get("prediction_type")
    if said is not None:
        return WORDS.get(said, "")
    names = [cls.__name__ for cls in type(scheduler).__mro__]
    return next((BY_CLASS[name] for name in names if name in BY_CLASS), "")


def explain_noise(scheduler: Any, eta: float = 0.0) -> str:
    """What makes the steps of a scheduler draw noise; empty where none is drawn.

    Args:
        scheduler: Of a pipeline.
        eta: What the pipeline was called with.

    Example:
        >>> from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
        >>> explain_noise(DDIMScheduler(), eta=0.5)
        'DDIMScheduler with eta=0.5'
        >>> explain_noise(DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"))
        "DPMSolverMultistepScheduler with algorithm_type='sde-dpmsolver++'"
    """
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    bases = {cls.__name__ for cls in type(scheduler).__mro__}
    algorithm = str(config.get("algorithm_type", ""))
    if bases & set(ALWAYS):
        return name
    if algorithm.startswith("sde"):
        return f"{name} with algorithm_type={algorithm!r}"
    if config.get("stochastic_sampling", False):
        return f"{name} with stochastic_sampling=True"
    if bases & set(TAKE_ETA) and eta > 0:
        return f"{name} with eta={eta:g}"
    return ""
