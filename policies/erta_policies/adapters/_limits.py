"""`WarmUp`, `LastStep`, `MaxConsecutive`, `OnlyBetween`: where a step must compute."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace

from erta_framework import Compute, Decision, Policy, Reuse, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.session import Call


def limit_reuse(decision: Decision, allowed: Sequence[bool], reason: str) -> Decision:
    """Keep a reuse for the samples where it is allowed; the others compute.

    Args:
        decision: What the policies behind decided.
        allowed: Whether each sample may be reused, `[B]`.
        reason: For the trace, where nothing is left of the reuse.
    """
    if isinstance(decision, Compute) or all(allowed):
        return decision
    wanted = decision.mask if isinstance(decision.mask, tuple) else (True,) * len(allowed)
    mask = tuple(a and w for a, w in zip(allowed, wanted, strict=True))
    if not any(mask):
        return Compute(reason, decision.scope)
    return replace(decision, mask=mask)


class WarmUp(Policy):
    """Computes the first steps of the schedule, whatever the policies listed after it decide.

    Source: ours; what the published methods write as retention, warm-up or first enhance.

    Attributes:
        steps: Number of steps, counted from the start of the schedule.
        fraction: Part of the schedule, rounded down; added to `steps`.

    Raises:
        PolicyError: None is given, or one is out of range.

    Example:
        >>> WarmUp(fraction=0.2).count(50)
        10
    """

    traits = Traits(static=True, serves=frozenset({"latents", "tokens"}))
    steps: int | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.fraction is None:
            raise PolicyError("WarmUp takes steps=<number> or fraction=<part of the steps>")
        if self.steps is not None and self.steps < 0:
            raise PolicyError(f"WarmUp has {self.steps} steps, it must be at least 0")
        if self.fraction is not None and not 0.0 <= self.fraction <= 1.0:
            raise PolicyError(f"the fraction of WarmUp is {self.fraction}, outside [0, 1]")

    def count(self, num_steps: int) -> int:
        """Steps that are computed, of a schedule of `num_steps`."""
        # rounded first, because 0.29 * 100 is a little less than 29
        part = round((self.fraction or 0.0) * num_steps, 9)
        return (self.steps or 0) + math.floor(part)

    @hookimpl(wrapper=True)
    def decide(self, step: Step) -> Generator[None, Decision, Decision]:
        decision = yield
        if step.index < self.count(step.num_steps) and isinstance(decision, Reuse):
            return Compute("warm-up", decision.scope)
        return decision


class LastStep(Policy):
    """Computes the last steps, whatever the policies listed after it decide.

    Source: ours; many published methods force the last step.

    Attributes:
        steps: Number of steps before the end.

    Raises:
        PolicyError: It is less than 1.

    Example:
        >>> LastStep()
        LastStep(steps=1)
    """

    traits = Traits(static=True, serves=frozenset({"latents", "tokens"}))
    steps: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise PolicyError(f"LastStep has {self.steps} steps, it must be at least 1")

    @hookimpl(wrapper=True)
    def decide(self, step: Step) -> Generator[None, Decision, Decision]:
        decision = yield
        if step.index >= step.num_steps - self.steps and isinstance(decision, Reuse):
            return Compute("last step", decision.scope)
        return decision


class MaxConsecutive(Policy):
    """Lets no sample be reused more often than this in a row.

    Source: ours; what the published methods call K, max skips or max continuous cached steps.

    Attributes:
        steps: Longest run of reused steps.

    Raises:
        PolicyError: It is less than 0.

    Example:
        >>> MaxConsecutive(steps=2)
        MaxConsecutive(steps=2)
    """

    traits = Traits(static=True, serves=frozenset({"latents", "tokens"}))
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise PolicyError(f"MaxConsecutive has {self.steps} steps, it must be at least 0")

    @hookimpl(wrapper=True)
    def decide(self, step: Step, call: Call) -> Generator[None, Decision, Decision]:
        decision = yield
        computed = call.history[0].steps(call.x.shape[0])
        allowed = [step.index - last <= self.steps for last in computed]
        return limit_reuse(decision, allowed, f"{self.steps} reused in a row")


class OnlyBetween(Policy):
    """Allows reuse only while the sigma of the step lies in a range; other steps compute.

    Source: ours; the start and end percent of several integrations, in sigma.

    Attributes:
        high: Largest sigma with reuse.
        low: Smallest sigma with reuse.

    Raises:
        PolicyError: The range is empty.

    Example:
        >>> OnlyBetween(high=0.9, low=0.1)
        OnlyBetween(high=0.9, low=0.1)
    """

    traits = Traits(static=True, serves=frozenset({"latents", "tokens"}))
    high: float = math.inf
    low: float = 0.0

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise PolicyError(f"OnlyBetween allows sigma from {self.low} to {self.high}: nothing")

    @hookimpl(wrapper=True)
    def decide(self, step: Step) -> Generator[None, Decision, Decision]:
        decision = yield
        inside = self.low <= step.interval.start <= self.high
        if not inside and isinstance(decision, Reuse):
            return Compute(f"sigma outside [{self.low:g}, {self.high:g}]", decision.scope)
        return decision
