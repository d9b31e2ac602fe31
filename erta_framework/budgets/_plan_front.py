"""The front of a planner: the best schedule of each number of network calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from erta_framework.budgets._measured_front import MeasuredFront
from erta_framework.budgets._planner import find_planner, sign_schedule, with_calls
from erta_framework.budgets._step_schedule import StepSchedule
from erta_framework.errors import InputError
from erta_framework.plugins import Policy


@dataclass(frozen=True, slots=True)
class FrontRow:
    """One schedule of a front, with what replays measured of it.

    Attributes:
        schedule: The schedule, with the planner's predicted error.
        psnr: Measured mean PSNR on calibration samples, None where this number was not measured.
        psnr_std: Deviation over samples.
        refined_psnr: The same after refinement.
        seconds: Of a request, from the measured seconds of full and cached runs.
    """

    schedule: StepSchedule
    psnr: float | None = None
    psnr_std: float | None = None
    refined_psnr: float | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, schedule: StepSchedule, measured: MeasuredFront | None) -> FrontRow:
        """A schedule with what is known of it from plans that were replayed."""
        if measured is None:
            return cls(schedule)
        seconds = None
        if measured.timed:
            fixed, each = measured.seconds_line(schedule.num_steps)
            seconds = fixed + each * schedule.calls
        if schedule.computed not in measured.steps:
            return cls(schedule, seconds=seconds)
        row = measured.steps.index(schedule.computed)
        return cls(
            schedule,
            psnr=measured.psnr[row],
            psnr_std=measured.psnr_std[row],
            refined_psnr=measured.refined_psnr[row],
            seconds=seconds,
        )

    @property
    def computed(self) -> tuple[int, ...]:
        """Computed steps, rising."""
        return self.schedule.computed

    @property
    def num_steps(self) -> int:
        """Steps of the schedule."""
        return self.schedule.num_steps

    @property
    def calls(self) -> int:
        """Network calls of each branch."""
        return self.schedule.calls

    @property
    def predicted(self) -> float:
        """What the planner predicts, in its own unit; NaN where it does not."""
        return math.nan if self.schedule.predicted is None else self.schedule.predicted

    def record(self) -> dict[str, object]:
        """As JSON holds it."""
        return {
            "steps": self.num_steps,
            "calls": self.calls,
            "speedup": self.schedule.speedup,
            "predicted": None if math.isnan(self.predicted) else self.predicted,
            "psnr": self.psnr,
            "psnr_std": self.psnr_std,
            "refined_psnr": self.refined_psnr,
            "seconds": self.seconds,
            "computed": list(self.computed),
        }


def plan_front(
    policies: Sequence[Policy], num_steps: int, measured: MeasuredFront | None = None
) -> list[FrontRow]:
    """The schedules that no other beats in both calls and predicted error, fewest calls first.

    Args:
        policies: One of them takes a budget.
        num_steps: Steps of the schedule.
        measured: Plans that were replayed.

    Raises:
        PolicyError: None of the policies takes a budget.
        InputError: No number of calls can be planned.
    """
    with_calls(policies, num_steps)  # says if none takes a budget
    planner = find_planner(policies)
    schedules = {} if planner is None else planner.schedules(num_steps)
    found: list[FrontRow] = []
    best = math.inf
    for _, each in sorted(schedules.items()):
        assert planner is not None
        row = FrontRow.of(sign_schedule(each, planner, num_steps), measured)
        if found and (row.calls <= found[-1].calls or row.predicted >= best):
            continue
        best = math.inf if math.isnan(row.predicted) else row.predicted
        found.append(row)
    if not found:
        raise InputError(f"no number of calls up to {num_steps} can be planned with these policies")
    return found
