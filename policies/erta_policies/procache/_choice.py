"""`PlanSource`: where the plan of a request comes from, and which of several it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from erta_framework.errors import PolicyError
from erta_policies.procache._scores import ScoredPlan
from erta_policies.shared import PlanBudget, PlanFamily, StepPlan


@dataclass(frozen=True, slots=True)
class PlanSource:
    """Where a plan comes from.

    Attributes:
        written: A plan as it is.
        budget: How much it may cost.
        shortest: Fewest reused steps between two full ones, of a gradual plan.
        longest: Most.
        select: Whether tokens are refreshed.

    Raises:
        PolicyError: The budget is none that a plan can be made for, or the gaps are out of range.
    """

    written: StepPlan | None
    budget: PlanBudget | None
    shortest: int
    longest: int
    select: bool

    def __post_init__(self) -> None:
        if not 0 <= self.shortest <= self.longest:
            raise PolicyError(
                f"gaps of ProCache are from {self.shortest} to {self.longest} steps; give at least "
                "0, and the longer one second"
            )
        budget = self.budget
        if budget is not None and (budget.psnr is not None or budget.seconds is not None):
            raise PolicyError(f"ProCache got {budget}; give a budget of calls, speedup or work")

    @property
    def work(self) -> float | None:
        """The budget in work, where it is one."""
        return None if self.budget is None else self.budget.work

    def list_plans(self, num_steps: int, scored: Sequence[ScoredPlan]) -> Sequence[StepPlan]:
        """The plans for so many steps, the preferred one first; those that cost more go before.

        Args:
            num_steps: Steps of the run.
            scored: Plans with their errors, where some were measured.

        Raises:
            PolicyError: There is none.
        """
        if self.written is not None:
            self.written.require_steps(num_steps, "ProCache")
            return (self.written if self.select else self.written.without_select(),)
        most = num_steps
        if self.budget is not None and self.work is None:
            most = self.budget.calls_for(num_steps)
        plans = self._take_scored(scored, most) if scored else self._make_gradual(num_steps, most)
        return [plan.with_select() for plan in plans] if self.select else plans

    def _take_scored(self, scored: Sequence[ScoredPlan], most: int) -> Sequence[StepPlan]:
        fitting = [one for one in scored if len(one.plan.full) <= most]
        if not fitting:
            raise PolicyError(
                f"ProCache may have {most} full steps, and the plans of its profile have at least "
                f"{min(len(one.plan.full) for one in scored)}; calibrate with fewer, or give more"
            )
        if self.budget is None:
            return [min(fitting, key=lambda one: one.error).plan]
        ranked = sorted(fitting, key=lambda one: (-len(one.plan.full), one.error))
        return [one.plan for one in ranked]

    def _make_gradual(self, num_steps: int, most: int) -> Sequence[StepPlan]:
        least = math.ceil(num_steps / (self.longest + 1))
        highest = min(most, num_steps // (self.shortest + 1))
        if highest < least:
            raise PolicyError(
                f"ProCache may have {most} full steps of {num_steps}, and with {self.shortest} to "
                f"{self.longest} reused ones between them there are at least {least}; give a "
                "larger budget, or other gaps"
            )
        # exactly so many are asked for, and not fewer, where shorter gaps would allow them
        if self.work is None and highest < most:
            return [PlanFamily(num_steps, most, self.shortest, self.longest).gradual]
        return [
            PlanFamily(num_steps, full, self.shortest, self.longest).gradual
            for full in range(highest, least - 1, -1)
        ]
