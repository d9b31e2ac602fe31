"""`TimestepAdjuster`: shorter steps where the reused velocity is unreliable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from erta_framework import (
    Answer,
    Interval,
    Policy,
    Profile,
    Profiler,
    SessionInfo,
    Step,
    Traits,
    hookimpl,
)
from erta_framework.budgets import StepSchedule
from erta_framework.errors import PolicyError
from erta_policies.ertacache._schedule import reused_pairs
from erta_policies.ertacache._statistics import KIND, Form, Signal, phi_table
from erta_policies.shared import load_profile, require_match


class TimestepAdjuster(Policy):
    """Scales the step after a reused output by phi and redistributes the time that remains.

    ERTACache (arXiv 2508.21091) multiplies a reused step by phi, and scales the next one by
    dt_c = (1 - sum of the steps so far) / (1 - n/T). That n counts finished steps, and that dt_c
    scales the nominal step, is our reading. On any sigma grid, which is ours: at step i of a
    trajectory at sigma s, the nominal step is scaled by (s - sigma_T) / (sigma_i - sigma_T),
    remaining time over nominally remaining time, and by phi if the step was reused. The last step
    takes all that remains, so the steps end at sigma_T exactly for every phi.

    Accounts of the paper give two forms of phi: `"difference"`,
    clip(1 - ||v~_i - v_i||_1 / ||v_i - v_{i+1}||_1, 0, 1), and `"velocity"`,
    clip(1 - ||v~_i - v_i||_1 / ||v_i||_1, 0, 1). At inference v_i is unknown; that phi is a
    constant for each step, averaged over calibration, is our reading, and so are the lower bound
    and the choice of network time. `mean_phi` shows how far reused steps go: below about 0.2 they
    hardly move.

    Attributes:
        profile: File or profile of a `ResidualProfiler`; not needed when `phi` is given.
        phi: Constants a step instead of a profile.
        form: Which denominator.
        minimum: Lower bound of phi, which keeps the trajectory moving.
        network_time: The network's timestep on later steps: of the `"nominal"` grid, or of the
            `"actual"` sigma.
        signal: Branch whose error counts.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: The bound is outside (0, 1] or a phi outside [0, 1], or both `phi` and
            `profile` are given.

    Example:
        >>> TimestepAdjuster(phi=(0.9,) * 50).network_time
        'actual'
    """

    traits = Traits(static=True, requires=frozenset({"first_order"}))

    profile: str | Path | Profile | None = None
    phi: tuple[float, ...] | None = None
    form: Form = "velocity"
    minimum: float = 0.2
    network_time: Literal["nominal", "actual"] = "actual"
    signal: Signal = "first"
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.minimum <= 1:
            raise PolicyError(f"TimestepAdjuster(minimum={self.minimum}): it must be in (0, 1]")
        if self.phi is not None and not all(0 <= value <= 1 for value in self.phi):
            raise PolicyError("TimestepAdjuster(phi=...): every value must be in [0, 1]")
        if self.phi is not None and self.profile is not None:
            raise PolicyError("TimestepAdjuster got profile and phi; give one of them")

    def prepare(self) -> None:
        if self.phi is None:
            _ = self._table

    def calibrator(self) -> Profiler | None:
        from erta_policies.ertacache._profiler import ResidualProfiler

        return ResidualProfiler() if self.phi is None else None

    @cached_property
    def _profile(self) -> Profile:
        return load_profile(self, self.profile, (KIND,))

    @cached_property
    def _table(self) -> list[list[float]]:
        table: list[list[float]] = phi_table(self._profile, self.form, self.signal).tolist()
        return table

    def phi_of(self, source: int, index: int) -> float:
        """Phi at step `index` when the residual of step `source` is reused there."""
        value = self.phi[index] if self.phi is not None else self._table[source][index]
        return min(1.0, max(self.minimum, value))

    def mean_phi(self, schedule: StepSchedule) -> float:
        """Average phi over the reused steps of a schedule, after bounding; 1 if it reuses none.

        Example:
            >>> TimestepAdjuster(phi=(1.0, 0.5, 0.1, 1.0)).mean_phi(StepSchedule.of({0, 3}, 4))
            0.35
        """
        values = [self.phi_of(source, index) for source, index in reused_pairs(schedule)]
        return sum(values) / len(values) if values else 1.0

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        if self.phi is None:
            require_match(self._profile, session, self.allow)
        elif len(self.phi) != session.num_steps:
            raise PolicyError(
                f"TimestepAdjuster has {len(self.phi)} values of phi, the run {session.num_steps} "
                "steps; give one a step"
            )

    @hookimpl
    def adjust_interval(self, step: Step, answers: Mapping[str, Answer]) -> Interval | None:
        interval, session = step.interval, step.session
        index, sigmas = interval.index, session.sigmas
        if index == session.num_steps - 1:
            return replace(interval, end=sigmas[-1])
        source = next((a.source for a in answers.values() if a.source is not None), None)
        factor = 1.0 if source is None else self.phi_of(source, index)
        if factor == 1.0 and interval.start == sigmas[index]:
            return None  # on the nominal grid, bit for bit
        scale = (interval.start - sigmas[-1]) / (sigmas[index] - sigmas[-1])
        size = (sigmas[index] - sigmas[index + 1]) * scale * factor
        end = min(interval.start, max(sigmas[-1], interval.start - size))
        end_time = session.time_of(end) if self.network_time == "actual" else interval.end_time
        return Interval(index, interval.start, end, interval.time, end_time)
