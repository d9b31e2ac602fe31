"""`ScheduleDocument`: what a schedule file says, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from erta_framework.budgets._step_schedule import StepSchedule
from erta_framework.errors import InputError
from erta_framework.text import escape_line

EVERY = "all"
"""Name of the one schedule that serves the whole network and every branch."""


@dataclass(frozen=True, slots=True)
class ScheduleDocument:
    """Computed steps by name, and what its format says beside them.

    Attributes:
        schedules: By the name of a branch of guidance or of a component of the network; `"all"`
            where one serves everything.
        named: What the names are.
        own: What a format says beyond computed steps, by the name of the format and of the
            setting, such as the spans of a path. A format that knows them writes them again.

    Raises:
        InputError: There is no schedule, or two have other numbers of steps.

    Example:
        >>> ScheduleDocument.of(StepSchedule.of({2}, 4)).as_one("a list").computed
        (0, 2)
    """

    schedules: Mapping[str, StepSchedule]
    named: Literal["network", "branches", "components"] = "network"
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = {escape_line(name): each.num_steps for name, each in self.schedules.items()}
        if not steps:
            raise InputError("there is no schedule to convert; give at least one list of steps")
        if len({*steps.values()}) > 1:
            said = ", ".join(f"{name} has {number}" for name, number in steps.items())
            raise InputError(f"the schedules are of other numbers of steps: {said}; give one")

    @classmethod
    def of(
        cls, schedule: StepSchedule, own: Mapping[str, Mapping[str, Any]] | None = None
    ) -> ScheduleDocument:
        """One schedule for the whole network; those of branches, where it has some."""
        if schedule.branches:
            return cls(dict(schedule.branches), "branches", own or {})
        return cls({EVERY: schedule}, "network", own or {})

    @property
    def num_steps(self) -> int:
        """Steps of the schedules."""
        return next(iter(self.schedules.values())).num_steps

    def as_one(self, form: str) -> StepSchedule:
        """The one schedule of all names.

        Args:
            form: The format that has room for one, for the message.

        Raises:
            InputError: Two names compute other steps; names both.
        """
        (first, schedule), *others = self.schedules.items()
        for name, other in others:
            if other.computed != schedule.computed:
                raise InputError(
                    f"{form} has room for one list of steps, and the {self.named} have their own: "
                    f"{escape_line(first)} computes {list(schedule.computed)}, {escape_line(name)} "
                    f"computes {list(other.computed)}; convert to a format that names them, or "
                    "give each its own file"
                )
        return schedule

    def list_losses(self, keeps: tuple[str, ...]) -> list[str]:
        """What is said beyond computed steps and lost in a format that keeps only some of it.

        Args:
            keeps: Names in `own` that the format writes again.

        Example:
            >>> path = ScheduleDocument.of(StepSchedule.of({2}, 4), {"path": {"spans": [2]}})
            >>> path.list_losses(keeps=()), path.list_losses(keeps=("path",))
            (['spans of path'], [])
        """
        return [
            f"{setting} of {name}"
            for name, settings in self.own.items()
            if name not in keeps
            for setting in settings
        ]
