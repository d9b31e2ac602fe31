"""Plain solvers on fixed sigmas, for pipelines that take only a number of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import diffusers
import numpy as np

from erta_framework.errors import CapabilityError, InputError
from erta_framework.sampling import DDIM, FlowAdamsBashforth2, Solver
from erta_framework.sampling.solvers import AdamsBashforth2
from erta_integrations.diffusers.pipeline import capabilities

OWN_SOLVERS: Mapping[str, Mapping[str, Solver]] = MappingProxyType(
    {
        "velocity": {"ab2": FlowAdamsBashforth2()},
        "epsilon": {
            "euler": DDIM(),
            "ab2": replace(DDIM().build(), integrator=AdamsBashforth2()),
        },
    }
)
"""Solvers of the own loop, by what the network predicts and by name; the rest are schedulers."""


class FixedSigmas:
    """Steps on `given` sigmas, whatever number of steps or sigmas a pipeline asks for."""

    given: tuple[float, ...] = ()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Start on the given sigmas."""
        super().set_timesteps(sigmas=np.array(self.given), device=device)  # type: ignore[misc]


class FixedSigmasEuler(FixedSigmas, diffusers.FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """Euler steps on fixed sigmas."""


class FixedSigmasUniPC(FixedSigmas, diffusers.UniPCMultistepScheduler):  # type: ignore[misc]
    """UniPC on fixed sigmas."""


def list_grid(scheduler: Any, prediction: str, steps: int) -> tuple[float, ...]:
    """Sigmas of a full run, down to 0, as plain solvers take them.

    Args:
        scheduler: Of the full run.
        prediction: What the network predicts.
        steps: Steps of the full run.

    Raises:
        CapabilityError: The scheduler neither steps from sigma to sigma nor is DDIM.
    """
    if isinstance(scheduler, diffusers.DDIMScheduler) and prediction == "epsilon":
        return DDIM().schedule(steps).sigmas
    if "first_order" not in capabilities(scheduler):
        raise CapabilityError(
            f"{type(scheduler).__name__} does not step from sigma to sigma; plain steps on given "
            "sigmas need FlowMatchEulerDiscreteScheduler or DDIMScheduler"
        )
    scheduler.set_timesteps(steps)
    return tuple(scheduler.sigmas.tolist())


def make_scheduler(solver: str, sigmas: Sequence[float]) -> Any:
    """A scheduler that steps from each of these sigmas to the next, and from the last to 0.

    Args:
        solver: `"euler"` or `"unipc"`.
        sigmas: Falling, without the 0 at the end.

    Raises:
        InputError: The solver is unknown.

    Example:
        >>> scheduler = make_scheduler("euler", [1.0, 0.4])
        >>> scheduler.set_timesteps(50)
        >>> [round(sigma, 1) for sigma in scheduler.sigmas.tolist()]
        [1.0, 0.4, 0.0]
    """
    made: FixedSigmasEuler | FixedSigmasUniPC
    if solver == "euler":
        made = FixedSigmasEuler(shift=1.0)
    elif solver == "unipc":
        made = FixedSigmasUniPC(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0
        )
    else:
        raise InputError(f"solver {solver!r} takes no sigmas here; give euler or unipc")
    made.given = tuple(sigmas)
    return made
