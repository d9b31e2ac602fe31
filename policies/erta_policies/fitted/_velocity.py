"""`FittedVelocity`: predicts reused steps and corrects computed ones with fitted weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from erta_framework import (
    Call,
    Needs,
    Policy,
    Profile,
    Profiler,
    Seam,
    SessionInfo,
    Step,
    Traits,
    hookimpl,
)
from erta_framework.errors import PolicyError
from erta_policies.fitted import _features as features
from erta_policies.fitted._solver_variable import SolverVariable
from erta_policies.fitted._table import KIND, FittedTable, require_judged
from erta_policies.forecast import sum_weighted
from erta_policies.shared import load_profile, require_match

Weight = float | Tensor
OFF = "off the fitted schedule: Adams-Bashforth"


@dataclass(slots=True)
class ScheduleAdherence:
    """Whether a branch has kept to the fitted schedule, and on the grid, so far."""

    good: bool


class FittedVelocity(Policy):
    """Integrates with the combinations of cached velocities that were fitted for each step.

    It predicts reused steps and may correct computed ones. The weights are constants of the
    schedule: a step is a chain of multiply-adds, and nothing is read back. All guidance branches
    share them, so the guided velocity is combined by the same weights.

    The weights belong to one schedule. A run may leave it: another rule decides, a sample of the
    batch goes its own way, or the steps were moved. From then on computed outputs are left alone
    and reused ones are Adams-Bashforth 2 of the cached velocities (under a multistep solver, their
    line at the step); the trace says so.

    If calibration ended nearer to the full run with a rule than with the fit, the profile stands
    for that rule. So on the calibration samples it is never worse than plain residual reuse. A
    profile that was added up from several batches and not judged as a whole is refused.

    Source: ours.

    Attributes:
        profile: File or profile of a `FittedProfiler`.
        guard: Compute where a prediction is not finite or too large; the trace says so. This reads
            back one number each reused step. Without it nothing is read back, and a prediction that
            is not finite is an error at the end of the request.
        limit: With `guard`, largest root mean square of a prediction over that of the newest
            velocity.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: There is no profile, or the limit is not positive.
        ProfileError: The profile is a sum of batches that no run has judged.
        ProfileMismatchError: The profile was fitted for another run.

    Example:
        >>> FittedVelocity(profile="fitted.safetensors").guard
        False
    """

    profile: str | Path | Profile | None = None
    guard: bool = False
    limit: float = 4.0
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise PolicyError(f"FittedVelocity(limit={self.limit}): it must be positive")

    @property
    def traits(self) -> Traits:
        depth = self._table.settings.velocities if self.profile is not None else 1
        return Traits(
            seams=frozenset({Seam.LATENT}),
            memory=Needs(evaluations=max(2, depth), pairs=True),
            static=not self.guard,  # the guard reads values back
            corrects_computed=True,
        )

    def prepare(self) -> None:
        require_judged(type(self).__name__, self._table)
        _ = self._numbers

    def calibrator(self) -> Profiler | None:
        from erta_policies.fitted._profiler import FittedProfiler

        return FittedProfiler()

    @cached_property
    def _profile(self) -> Profile:
        return load_profile(self, self.profile, (KIND,))

    @cached_property
    def _table(self) -> FittedTable:
        return FittedTable.of(self._profile)

    @cached_property
    def _numbers(self) -> tuple[Sequence[float] | Tensor | None, ...]:
        # one weight for all channels needs no tensors: nothing to copy, nothing to read
        rows = self._table.rows()
        return tuple(r if r is None or len(r) > 1 else r[0].tolist() for r in rows)

    @cached_property
    def _computed(self) -> frozenset[int]:
        return frozenset(self._table.computed)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        require_match(self._profile, session, self.allow)
        session.state_of(self, lambda: self._weights(session))

    def _weights(self, session: SessionInfo) -> tuple[Sequence[Weight] | None, ...]:
        """Weights by step: numbers, or tensors on the device that broadcast along channels."""
        return tuple(None if row is None else spread(row, session) for row in self._numbers)

    @hookimpl
    def forward(self, step: Step, call: Call) -> Tensor | None:
        follows = self._follows(step, call)
        rows: tuple[Sequence[Weight] | None, ...] = step.session.state_of(self, tuple)
        if not call.reused:
            weights = rows[step.index]
            return self._corrected(step, call, weights) if follows and weights is not None else None
        kept = self._table.kept
        if kept == "plain":
            return None
        if not follows or kept == "taylor":
            call.compute.reason = "" if follows else OFF
            answer = self._line(step, call)
        else:
            answer = self._answer(step, call, rows[step.index])
        return self._guarded(call, answer) if self.guard else answer

    def _follows(self, step: Step, call: Call) -> bool:
        session = step.session
        state = call.state_of(self, lambda: ScheduleAdherence(session.first == 0))
        on_grid = step.interval.start == session.sigmas[step.index]
        as_planned = call.reused == (step.index not in self._computed) and call.rows is None
        state.good = state.good and on_grid and as_planned
        return state.good

    def _corrected(self, step: Step, call: Call, weights: Sequence[Weight]) -> Tensor:
        output = call.compute()
        earlier = [e.output for e in call.history if e.output is not None]
        return self._combine(step, call.x, call.x, [output, *earlier], weights)

    def _answer(self, step: Step, call: Call, weights: Sequence[Weight] | None) -> Tensor:
        assert weights is not None  # reused steps always have some
        start = call.history[0].input
        assert start is not None
        outputs = [e.output for e in call.history if e.output is not None]
        return self._combine(step, call.x, start, outputs, weights)

    def _combine(
        self,
        step: Step,
        x: Tensor,
        start: Tensor,
        outputs: Sequence[Tensor],
        weights: Sequence[Weight],
    ) -> Tensor:
        return combine_velocities(x, start, outputs, weights)

    def _line(self, step: Step, call: Call) -> Tensor:
        used, node = call.history[:2], SolverVariable.of(step.session).node
        ends = (node(step.interval.start), node(step.interval.end))
        averaged = self._table.settings.interval(*ends)
        row = features.line_weights([node(e.sigma) for e in used], *averaged, depth=2)
        weights = features.to_raw_weights(row, depth=2)
        return sum_weighted([e.output for e in used if e.output is not None], weights[: len(used)])

    def _guarded(self, call: Call, answer: Tensor) -> Tensor:
        newest = call.history[0].output
        assert newest is not None
        sizes = [value.float().flatten(1).norm(dim=1) for value in (answer, newest)]
        ratio = float((sizes[0] / sizes[1].clamp_min(1e-12)).max())
        if ratio <= self.limit:  # false for NaN
            return answer
        call.compute.reason = f"fitted answer out of range: {ratio:.3g} > {self.limit:g}"
        state = call.state_of(self, lambda: ScheduleAdherence(False))
        state.good = False
        return call.compute()


def spread(row: Sequence[float] | Tensor, session: SessionInfo) -> Sequence[Weight]:
    """Weights of one step as they are used.

    Args:
        row: One weight for all channels each, or `[C, n + 2]`.
        session: The request.
    """
    if not isinstance(row, Tensor):
        return row
    shape = [1] * len(session.shape)
    shape[session.channel_dim] = len(row)
    return [column.reshape(shape) for column in row.T.to(session.device, torch.float32)]


def combine_velocities(
    x: Tensor, start: Tensor, outputs: Sequence[Tensor], weights: Sequence[Weight]
) -> Tensor:
    """`sum w_k v_k + w_x x + w_d (x - start)`, in float32 for narrower types.

    Args:
        x: Latents.
        start: Latents of the newest computed step.
        outputs: Computed velocities, newest first.
        weights: Of as many velocities as the profile has places for, then w_x and w_d.
    """
    *velocities, latent, displacement = weights
    terms: list[tuple[Tensor, Weight]] = [
        (value, weight)
        for value, weight in zip(outputs, velocities, strict=False)
        if isinstance(weight, Tensor) or weight != 0.0
    ]
    if isinstance(displacement, Tensor) or displacement != 0.0 or latent != 0.0:
        terms += [(x, latent + displacement), (start, -displacement)]
    wide = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    (value, weight), *others = terms
    total = value.to(wide) * weight
    for value, weight in others:
        if isinstance(weight, Tensor):
            total.addcmul_(value.to(wide), weight.to(wide))
        else:
            total.add_(value.to(wide), alpha=weight)
    return total.to(x.dtype)
