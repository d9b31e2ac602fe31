"""How clean sample and noise mix in the latents of each scheduler, for the guided prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor

from erta_framework import Interval
from erta_framework.session import GUIDED, Guided
from erta_integrations.diffusers.network import find_argument, find_argument_place
from erta_integrations.diffusers.pipeline._prediction import read_prediction

OUTPUT = "model_output"
"""The guided prediction among the arguments of `scheduler.step`."""

Levels = Callable[[float], tuple[float, float]]
"""From sigma of our schedule to the factors of clean sample and noise in the latents."""


def mix_flow(sigma: float) -> tuple[float, float]:
    """`x = (1 - sigma) * clean + sigma * noise`."""
    return 1.0 - sigma, sigma


def mix_noise_level(sigma: float) -> tuple[float, float]:
    """Variance preserving, where sigma is the factor of the noise."""
    return math.sqrt(max(0.0, 1.0 - sigma**2)), sigma


def mix_ratio(sigma: float) -> tuple[float, float]:
    """Variance preserving, where sigma is the ratio of noise and clean part."""
    alpha = 1.0 / math.sqrt(1.0 + sigma**2)
    return alpha, sigma * alpha


def mix_exploding(sigma: float) -> tuple[float, float]:
    """`x = clean + sigma * noise`."""
    return 1.0, sigma


BY_CLASS: Mapping[str, Levels] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "DDIMScheduler",
                "DDIMParallelScheduler",
                "DDPMScheduler",
                "DDPMParallelScheduler",
                "CogVideoXDDIMScheduler",
                "LCMScheduler",
                "PNDMScheduler",
                "TCDScheduler",
            ),
            mix_noise_level,
        ),
        **dict.fromkeys(
            (
                "DEISMultistepScheduler",
                "DPMSolverMultistepScheduler",
                "DPMSolverSinglestepScheduler",
                "SASolverScheduler",
                "UniPCMultistepScheduler",
            ),
            mix_ratio,
        ),
        **dict.fromkeys(
            (
                "EulerAncestralDiscreteScheduler",
                "EulerDiscreteScheduler",
                "HeunDiscreteScheduler",
                "LMSDiscreteScheduler",
            ),
            mix_exploding,
        ),
        **dict.fromkeys(
            (
                "FlowMatchEulerDiscreteScheduler",
                "FlowMatchHeunDiscreteScheduler",
                "FlowMatchLCMScheduler",
                "LTXEulerAncestralRFScheduler",
            ),
            mix_flow,
        ),
    }
)
"""The schedulers whose latents are known. Not those of EDM and of TrigFlow, whose networks predict
something between noise and clean sample."""


def find_levels(scheduler: Any) -> Levels | None:
    """How a scheduler's latents are mixed; None where that is not known.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> find_levels(DDIMScheduler())(0.6)
        (0.8, 0.6)
    """
    prediction = read_prediction(scheduler)
    names = [cls.__name__ for cls in type(scheduler).__mro__ if cls.__name__ in BY_CLASS]
    if not names or not prediction:
        return None
    return mix_flow if prediction == "velocity" else BY_CLASS[names[0]]


def find_level_capabilities(scheduler: Any) -> frozenset[str]:
    """`GUIDED`, where the mixture in the scheduler's latents is known."""
    return frozenset() if find_levels(scheduler) is None else frozenset({GUIDED})


@dataclass(frozen=True, slots=True, eq=False)
class StepArguments:
    """The arguments of `scheduler.step`, with what a policy may adjust among them.

    Attributes:
        step: The scheduler's own `step`.
        args: The positional arguments.
        kwargs: The keyword arguments.
    """

    step: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def read(self, levels: Levels, settled: Interval) -> Guided:
        """The guided prediction, its latents, and how these are mixed at the start of the step."""
        found = [find_argument(n, self.step, self.args, self.kwargs) for n in ("sample", OUTPUT)]
        x, prediction = found
        assert isinstance(x, Tensor)
        assert isinstance(prediction, Tensor)
        return Guided(x, prediction, *levels(settled.start))

    def replaced(self, prediction: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with another prediction."""
        if OUTPUT in self.kwargs:
            return self.args, {**self.kwargs, OUTPUT: prediction}
        place = find_argument_place(OUTPUT, self.step)
        assert place is not None
        return (*self.args[:place], prediction, *self.args[place + 1 :]), dict(self.kwargs)
