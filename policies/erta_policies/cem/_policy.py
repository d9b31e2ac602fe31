"""`CEM`: computes the steps of the cheapest plan for a number of calls."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import ClassVar

from erta_framework import Profile, Profiler, SessionInfo, hookimpl
from erta_framework.budgets import StepSchedule
from erta_framework.errors import PolicyError, ProfileError
from erta_policies.cem._plan import POWERS, Weight, plan_gaps
from erta_policies.cem._profiler import KIND, CEMProfiler
from erta_policies.shared import BudgetedPlanner, FixedSchedule, load_profile, require_match


class CEM(BudgetedPlanner, FixedSchedule):
    """Computes the steps that CEM plans: every gap near the mean one, where outputs change least.

    CEM plans for other caches: the paper puts its steps under TaylorSeer for Wan, TeaCache for
    FLUX and DuCa for DiT. List the predictor that the reused steps shall have beside it, such as
    `forecaster`.

    For FLUX and DiT its code sums the changes up over the run. That is not here: with the profiles
    that the code ships, the plan is then the same for three models, and even.

    Source: CEM, arXiv 2512.23258, and its code at ffa2a61; see `CEMProfiler` for what is ours.

    Attributes:
        profile: File or profile of a `CEMProfiler`.
        calls: Network calls of each branch.
        weight: How the number of reused steps C counts: an edge costs its change, C or C squared
            times that.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: Neither calls nor a budget is given, or there is no such weight.

    Example:
        >>> CEM(profile="wan.safetensors", calls=10).calls
        10
    """

    solved_fields: ClassVar[tuple[str, ...]] = ("calls",)

    profile: str | Path | Profile | None = None
    calls: int | None = None
    weight: Weight = "quadratic"
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._settle_budget()
        if self.budget is None and (self.calls is None or self.calls < 2):
            raise PolicyError(
                f"CEM(calls={self.calls}): give calls from 2, the first and the last step, or a "
                "budget"
            )
        if self.weight not in POWERS:
            raise PolicyError(f"CEM(weight={self.weight!r}): it is one of {', '.join(POWERS)}")

    def prepare(self) -> None:
        _ = self._schedule

    def calibrator(self) -> Profiler | None:
        return CEMProfiler()

    @cached_property
    def _profile(self) -> Profile:
        return load_profile(self, self.profile, (KIND,))

    @cached_property
    def _schedule(self) -> StepSchedule:
        steps = self._profile.num_steps
        asked = self._calls_for(steps, self._profile)
        calls = self.calls if asked is None else asked
        assert calls is not None
        return plan_gaps(self._profile, calls, self.weight)

    def computed_steps(self, num_steps: int) -> tuple[int, ...]:
        """The steps of the plan.

        Raises:
            ProfileError: The profile has another number of steps, or cannot be planned.
        """
        if num_steps != self._profile.num_steps:
            raise ProfileError(
                f"{self!r} has a profile of {self._profile.num_steps} steps, a schedule of "
                f"{num_steps} was asked for; calibrate for that number of steps"
            )
        return self._schedule.computed

    def predict(self, schedule: StepSchedule) -> StepSchedule:
        """The sum of the costs of its edges."""
        return self._schedule

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        require_match(self._profile, session, self.allow)
        self._require_device(self._profile, session)
        super().on_session_start(session)
