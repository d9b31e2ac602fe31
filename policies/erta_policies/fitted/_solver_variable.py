"""The variable in which a step of the solver is an Euler step.

With latents x scaled by s and nodes t, a first-order deterministic step is

    s' x' = s x + (t' - t) v

where v is what the network predicts. For flows t is sigma and s is 1. For DDIM with eta 0
(arXiv 2010.02502) v is the predicted noise, t the ratio of noise and clean part, and s the
reciprocal of the clean part's factor. The first step of multistep solvers is such a step too.

That one variable serves all of them is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from erta_framework import Interval, SessionInfo
from erta_framework.errors import PolicyError
from erta_framework.sampling.solvers import VARIANCE_EXPLODING
from erta_framework.session import DDIM_LEVELS
from erta_policies.shared import read_mixing

Kind = Literal["flow", "ratio", "level"]
NOISIEST = 1.0 - 1e-7
"""Largest noise level that has a ratio."""


@dataclass(frozen=True, slots=True)
class SolverVariable:
    """How a driver's sigma becomes nodes and scales.

    Attributes:
        kind: What sigma is: of a `"flow"` (or variance exploding, where v is the noise), the
            noise-to-clean `"ratio"` of variance-preserving latents, or their noise `"level"`.

    Example:
        >>> [round(SolverVariable(kind).node(0.6), 6) for kind in ("flow", "ratio", "level")]
        [0.6, 0.6, 0.75]
        >>> SolverVariable("flow").scale(0.6), SolverVariable("level").scale(0.6)
        (1.0, 1.25)
    """

    kind: Kind

    @classmethod
    def of(cls, session: SessionInfo) -> SolverVariable:
        """What the driver declares, or for other solvers what its sigmas look like.

        Raises:
            PolicyError: The network predicts something in which no step is an Euler step.
        """
        strange = session.capabilities & {"sample", "v_prediction"}
        if strange:
            raise PolicyError(
                f"fitted reuse weighs outputs in which a step is an Euler step, but under "
                f"{session.solver or 'this driver'} the network predicts {', '.join(strange)}; "
                "convert the output with erta_framework.sampling.networks.convert_prediction and "
                "use a solver that integrates velocity or noise"
            )
        if "velocity" in session.capabilities:
            return cls("flow")
        if "epsilon" in session.capabilities:  # variance-exploding latents need no scale, as flows
            return cls("flow" if VARIANCE_EXPLODING in session.capabilities else "ratio")
        if DDIM_LEVELS in session.capabilities:
            return cls("level")
        if read_mixing(session) == "flow":
            return cls("flow")
        return cls("ratio" if max(session.sigmas) > 1.0 else "level")

    def node(self, sigma: float) -> float:
        """The node t at sigma."""
        if self.kind != "level":
            return sigma
        level = min(sigma, NOISIEST)
        return level / math.sqrt(1.0 - level * level)

    def scale(self, sigma: float) -> float:
        """The factor s at sigma."""
        return 1.0 if self.kind == "flow" else math.hypot(1.0, self.node(sigma))

    def nodes(self, interval: Interval) -> tuple[float, float]:
        """Nodes where a step starts and ends."""
        return self.node(interval.start), self.node(interval.end)

    def close_gap(self, interval: Interval, v: Tensor, ahead: Tensor, behind: Tensor) -> Tensor:
        """The velocity that leads one run to another within a step: `v + s (x - y) / (t' - t)`.

        Args:
            interval: The step.
            v: Velocity of the run to reach.
            ahead: Its latents x.
            behind: Latents y of the run that is led.
        """
        first, last = self.nodes(interval)
        return v + self.scale(interval.start) / (last - first) * (ahead - behind).to(v)

    def lead_to(self, interval: Interval, x: Tensor, end: Tensor) -> Tensor:
        """The velocity of the step that leads from latents x to `end`."""
        first, last = self.nodes(interval)
        ends = self.scale(interval.end) * end
        return (ends - self.scale(interval.start) * x.to(ends)) / (last - first)

    def measure_movement(
        self, interval: Interval, x: Tensor, end: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, float]:
        """The velocity that moved latents x to `end`, and the norm of its rounding.

        The latents are rounded in their own type, which counts for more the shorter the step is.

        Args:
            interval: The step.
            x: Latents before it.
            end: Latents after it.
            dtype: In which to calculate.
        """
        first, last = self.nodes(interval)
        size, ends = last - first, self.scale(interval.end)
        start = x.to(dtype) * self.scale(interval.start)
        moved = (end.to(dtype) * ends - start) / size
        return moved, 8 * torch.finfo(end.dtype).eps * float(start.norm()) / abs(size)


def is_one_step(session: SessionInfo) -> bool:
    """Whether a step depends on its latents, interval and output alone."""
    return bool(session.capabilities & {"first_order", DDIM_LEVELS})
