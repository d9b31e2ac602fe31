"""Where each branch was last computed: SenCache measures the movement from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from erta_framework import Call, Seam, Step
from erta_framework.errors import CapabilityError


@dataclass(slots=True)
class ComputedReference:
    """Where a branch was last computed, sample by sample.

    Attributes:
        latents: The latents then, `[B, C, ...]`.
        steps: The step then, of each sample.
        times: The network's timestep then, of each sample.
    """

    latents: Tensor | None = None
    steps: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def keep(self, step: Step, x: Tensor, rows: Sequence[int] | None) -> None:
        """Take the latents on which the network has just run, of the samples `rows` or of all."""
        if rows is None or self.latents is None:
            self.latents = x.clone()
            self.steps = [step.index] * x.shape[0]
            self.times = [step.interval.time] * x.shape[0]
            return
        self.latents[list(rows)] = x
        for row in rows:
            self.steps[row], self.times[row] = step.index, step.interval.time

    def fits(self, x: Tensor, computed: Sequence[int]) -> bool:
        """Whether it belongs to the evaluations that a reuse would take."""
        known = self.latents is not None and self.latents.shape == x.shape
        return known and self.steps == list(computed)


def read_latents(call: Call) -> Tensor:
    """The latents of a call, also where the call is about tokens `[B, C, ...]`.

    Raises:
        CapabilityError: The driver does not show them.
    """
    if call.seam is Seam.LATENT:
        return call.x
    if not call.offers("latents"):
        raise CapabilityError(
            f"SenCache looks at the latents, which this driver does not show at the "
            f"{call.seam.value} seam; use the latent seam"
        )
    return call.feature("latents")
