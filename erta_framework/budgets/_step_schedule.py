"""`StepSchedule`: which steps are computed, known before anything is sampled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from erta_framework.errors import InputError


@dataclass(frozen=True, slots=True)
class StepSchedule:
    """Which steps are computed, what the other steps reuse, and what a planner predicts of it.

    Two schedules are equal where the same threshold, or none, computes the same steps and reuses
    the same ones. Predictions do not count.

    Attributes:
        computed: Indices of the computed steps, rising from 0.
        sources: For every step, the computed step whose evaluation it uses; itself if computed.
        threshold: The number that made the schedule, if one did.
        predicted: Predicted error of the whole schedule, which falls as network calls are added;
            None where the planner predicts nothing.
        unit: What `predicted` is in. Plans that were measured serve budgets in dB of planners with
            the same unit; `forecast` puts the name of the policy where it is empty.
        facts: Other numbers about the schedule, by name.
        errors: Predicted error of reuse at each step, whether or not it is computed; NaN where the
            planner cannot say, empty where it says nothing.
        branches: The schedule of each guidance branch, where branches have schedules of their own;
            this one is then that of the first branch.
        policy: Name of the policy that plans; `forecast` fills it in.
        owner: Name of the listed policy that it belongs to, as the catalogue has it; `forecast`
            fills it in.
        asked: Network calls that were asked for, where some were; `forecast` fills it in.

    Raises:
        InputError: The computed steps do not rise from 0, or a source is not an earlier computed
            step, or there is not one error for each step.

    Example:
        >>> schedule = StepSchedule.of({2, 3}, num_steps=6)
        >>> schedule.computed, schedule.sources
        ((0, 2, 3), (0, 0, 2, 3, 3, 3))
        >>> schedule.calls, schedule.speedup
        (3, 2.0)
    """

    computed: tuple[int, ...]
    sources: tuple[int, ...]
    threshold: float | None = None
    predicted: float | None = field(default=None, compare=False)
    unit: str = field(default="", compare=False)
    facts: Mapping[str, float] = field(default_factory=dict, compare=False)
    errors: tuple[float, ...] = field(default=(), compare=False)
    branches: Mapping[str, StepSchedule] = field(default_factory=dict, compare=False)
    policy: str = field(default="", compare=False)
    owner: str = field(default="", compare=False)
    asked: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        steps = self.computed
        if not steps or steps[0] != 0 or list(steps) != sorted({*steps}):
            raise InputError(
                f"the computed steps {steps} of a schedule must rise from step 0, each named once"
            )
        computed = {*steps}
        for step, source in enumerate(self.sources):
            if source > step or source not in computed or (step in computed) != (source == step):
                raise InputError(
                    f"step {step} of a schedule cannot use step {source}: a computed step uses "
                    f"itself, any other an earlier computed one; computed are {steps}"
                )
        if steps[-1] >= self.num_steps:
            raise InputError(
                f"the schedule computes step {steps[-1]} and has sources for {self.num_steps} "
                "steps; give one source for each step"
            )
        if self.errors and len(self.errors) != self.num_steps:
            raise InputError(
                f"the schedule has {len(self.errors)} errors for {self.num_steps} steps; give one "
                "for each step, NaN where there is none"
            )

    @classmethod
    def of(
        cls,
        computed: Iterable[int],
        num_steps: int,
        threshold: float | None = None,
        *,
        compute_last: bool = False,
        predicted: float | None = None,
    ) -> StepSchedule:
        """The schedule in which every other step reuses the newest computed one.

        Args:
            computed: Computed steps in any order; step 0 is added.
            num_steps: Steps of the schedule, at least 1.
            threshold: The number that made it.
            compute_last: Whether to add the last step as well.
            predicted: Predicted error.

        Raises:
            InputError: A step is outside the schedule.

        Example:
            >>> StepSchedule.of({2}, 5, compute_last=True).sources
            (0, 0, 2, 2, 4)
        """
        given = {*computed}
        outside = sorted(step for step in given if not 0 <= step < num_steps)
        if outside:
            raise InputError(f"steps {outside} are outside the schedule of {num_steps} steps")
        chosen = given | {0} | ({num_steps - 1} if compute_last else set())
        sources: list[int] = []
        for step in range(num_steps):
            sources.append(step if step in chosen else sources[-1])
        return cls(tuple(sorted(chosen)), tuple(sources), threshold, predicted)

    @property
    def num_steps(self) -> int:
        """Steps of the schedule."""
        return len(self.sources)

    @property
    def calls(self) -> int:
        """Network calls of each guidance branch."""
        return len(self.computed)

    @property
    def speedup(self) -> float:
        """Steps per network call. Wall time follows it where the network takes most of the time."""
        return self.num_steps / self.calls

    def describe(self) -> dict[str, float]:
        """Every number that the schedule has, by name; without those that have no meaning (NaN).

        Example:
            >>> StepSchedule.of({2}, 5, predicted=0.5).describe()
            {'calls': 2.0, 'predicted': 0.5}
        """
        found: dict[str, float | None] = {
            "calls": float(self.calls),
            **{f"calls {name}": float(each.calls) for name, each in self.branches.items()},
            "threshold": self.threshold,
            "predicted": self.predicted,
            **self.facts,
        }
        return {k: v for k, v in found.items() if v is not None and not math.isnan(v)}
