"""`FittedSchedule`: the schedule that a profile was fitted to."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

from erta_framework import Profile, Profiler, SessionInfo, hookimpl
from erta_framework.budgets import StepSchedule
from erta_framework.errors import ProfileError
from erta_policies.fitted._table import KIND, require_judged
from erta_policies.fitted._table import FittedTable as Table
from erta_policies.shared import FixedSchedule, load_profile, require_match


class FittedSchedule(FixedSchedule):
    """Computes the steps for which a profile of `FittedProfiler` was fitted.

    Source: ours.

    Attributes:
        profile: File or profile of a `FittedProfiler`.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        ProfileMismatchError: The profile was fitted for another run.
        ProfileError: It has another number of steps, or is a sum that no run has judged.

    Example:
        >>> FittedSchedule(profile="fitted.safetensors").traits.static
        True
    """

    profile: str | Path | Profile | None = None
    allow: tuple[str, ...] = ()

    def prepare(self) -> None:
        require_judged(type(self).__name__, self._table)

    def calibrator(self) -> Profiler | None:
        from erta_policies.fitted._profiler import FittedProfiler

        return FittedProfiler()

    @cached_property
    def _profile(self) -> Profile:
        return load_profile(self, self.profile, (KIND,))

    @cached_property
    def _table(self) -> Table:
        return Table.of(self._profile)

    def computed_steps(self, num_steps: int) -> tuple[int, ...]:
        """The computed steps of the profile.

        Raises:
            ProfileError: It has another number of steps.
        """
        if len(self._table.choices) != num_steps:
            raise ProfileError(
                f"{self!r} has a profile of {len(self._table.choices)} steps, a schedule of "
                f"{num_steps} was asked for; calibrate for that number of steps"
            )
        return self._table.computed

    def predict(self, schedule: StepSchedule) -> StepSchedule:
        """How many steps each rule has, and the root of the mean squared error at the end.

        The errors are those of the calibration samples; a plan may do better there than elsewhere.
        """
        table = self._table
        names = [choice.name.split()[0] for choice in table.choices]
        facts = {
            **{f"{name}_steps": float(names.count(name)) for name in sorted(set(names))},
            **{f"{name}_error": value**0.5 for name, value in table.errors.items()},
            "batches": float(table.batches),
            "judged": float(table.judged),
        }
        return replace(schedule, facts=facts)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        require_match(self._profile, session, self.allow)
        super().on_session_start(session)
