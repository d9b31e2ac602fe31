"""Guidance: which branches of a step are evaluated, and how their outputs combine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from erta_framework.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One evaluation of the network in a step.

    Attributes:
        name: Identity of the branch; history and state are kept by it.
        condition: What the network is conditioned on.
        copies: How often the latents are repeated along the batch (batched guidance: 2).
    """

    name: str
    condition: Tensor
    copies: int = 1

    def expand(self, x: Tensor) -> Tensor:
        """The network's input: the latents, repeated along the batch if need be."""
        return x if self.copies == 1 else torch.cat([x] * self.copies)

    def select(self, rows: Tensor) -> Branch:
        """The same branch for some samples of the network's batch, by their places `[R]`."""
        return replace(self, condition=self.condition.index_select(0, rows))


class Guidance(Protocol):
    """What the sampling loop needs of a guidance rule. Write your own by offering these members.

    To be named in a configuration it must be a frozen dataclass, whose fields are the options,
    registered under the entry-point group `erta_framework.guidance`. Its `repr` is in profiles.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Every branch that some step may evaluate."""
        ...

    def branches(
        self, cond: Tensor, uncond: Tensor | None, index: int, num_steps: int
    ) -> tuple[Branch, ...]:
        """The branches of step `index`, in the order in which they are evaluated.

        Args:
            cond: Condition of every sample, batch first.
            uncond: Unconditional condition of every sample, if the request has one.
            index: Step in the schedule, 0 is the noisiest.
            num_steps: Steps of the schedule.

        Raises:
            InputError: The step needs a condition that the request lacks.
        """
        ...

    def combine(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The guided output `[B, C, ...]` of the step's branches, by name."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NoGuidance:
    """The conditional branch alone."""

    @property
    def names(self) -> tuple[str, ...]:
        """`("cond",)`."""
        return ("cond",)

    def branches(
        self, cond: Tensor, uncond: Tensor | None, index: int, num_steps: int
    ) -> tuple[Branch, ...]:
        """The conditional branch."""
        return (Branch("cond", cond),)

    def combine(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The conditional output."""
        return outputs["cond"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CFG:
    """Classifier-free guidance `uncond + scale * (cond - uncond)` (arXiv 2207.12598).

    Attributes:
        scale: Guidance scale; 1 is the conditional output.
        start, stop: Part of the steps with guidance, as fractions of the schedule; outside it
            only the conditional branch is evaluated.
        batched: Evaluate both branches in one network call on a doubled batch.

    Raises:
        InputError: The interval is not within [0, 1], or the scale is not finite.
    """

    scale: float = 3.0
    start: float = 0.0
    stop: float = 1.0
    batched: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise InputError(f"the guidance scale is {self.scale}, it must be finite")
        if not 0.0 <= self.start <= self.stop <= 1.0:
            raise InputError(
                f"the guidance interval [{self.start}, {self.stop}) must lie within [0, 1]"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Every branch that some step may evaluate."""
        full = (self.start, self.stop) == (0.0, 1.0)
        if self.batched:
            return ("cond+uncond",) if full else ("cond+uncond", "cond")
        return ("cond", "uncond")

    def branches(
        self, cond: Tensor, uncond: Tensor | None, index: int, num_steps: int
    ) -> tuple[Branch, ...]:
        """Both branches inside the guidance interval, the conditional one outside.

        Raises:
            InputError: There is no unconditional condition.
        """
        # rounded, because 0.07 * 100 is a little more than 7
        first, end = round(self.start * num_steps, 9), round(self.stop * num_steps, 9)
        if not first <= index < end:
            return (Branch("cond", cond),)
        if uncond is None:
            raise InputError("CFG needs an unconditional condition; give uncond or use NoGuidance")
        if self.batched:
            return (Branch("cond+uncond", torch.cat([cond, uncond]), copies=2),)
        return (Branch("cond", cond), Branch("uncond", uncond))

    def combine(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The guided prediction, `[B, C, ...]`."""
        if "cond+uncond" in outputs:
            cond, uncond = outputs["cond+uncond"].chunk(2)
        elif "uncond" in outputs:
            cond, uncond = outputs["cond"], outputs["uncond"]
        else:
            return outputs["cond"]
        return uncond + self.scale * (cond - uncond)
