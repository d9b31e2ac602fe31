"""`FittedProfiler`: fits the weights of a schedule on calibration samples, in one batch."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from erta_framework import (
    Call,
    Policy,
    Profile,
    Profiler,
    Seam,
    SessionInfo,
    Step,
    Traits,
    hookimpl,
)
from erta_framework.budgets import as_planner, forecast
from erta_framework.calibration import Solution
from erta_framework.errors import PolicyError
from erta_policies.fitted._batch_checks import require_solution
from erta_policies.fitted._cached_run import RUNS
from erta_policies.fitted._normal_equations import TOWARD, FitSettings, Toward
from erta_policies.fitted._paired_run import PairedRun
from erta_policies.fitted._run_statistics import describe_run
from erta_policies.fitted._solver_variable import is_one_step
from erta_policies.fitted._table import KIND, FittedTable
from erta_policies.shared import RunProfiler, load_profile, require_computed, require_match

MOST = 6
"""Most velocities that a fit combines."""
SHARES = {True: 1.0, False: 0.3}
"""Default share of the trajectory target, under solvers without memory (True) and with it."""


class FittedProfiler(RunProfiler):
    """Fits, step by step, the weights that combine cached velocities under one schedule.

    At each step a few scalars combine the newest computed velocities and the latents into the
    velocity to integrate with; with `displacement`, also how far the latents have moved since the
    newest computed step. The scalars are least squares on calibration samples, in closed form, on
    states that the fit so far has led to. The target is the velocity that leads back to the
    sample's own full run (trajectory), the network's velocity at the latents of the cached run
    (local), or a share of both. At each step the error on held-out folds chooses between the fits
    with 1 to `velocities` velocities, Taylor (Adams-Bashforth 2), the newest velocity, and plain
    residual reuse.

    A batch must hold four copies of each sample; the batch is repeated as a whole. The copies are
    the full run, the fitted run, and plain and Taylor reuse on the same schedule to compare with.
    `Sampler.calibrate` and `erta calibrate` repeat the batch. All samples of a batch are fitted
    together, exactly.

    Profiles of several batches add up their normal equations. The sum is solved jointly, but each
    batch ran with weights of its own, and none with those of the sum. So `calibrate` runs another
    round with `start`: all batches then run with the weights of the sum, unchanged, and the errors
    of the new profile are those of these weights. A profile that was added up by hand is refused
    until this round was made.

    Source: ours. It extends the closed form of ERTACache's error rectification (arXiv 2508.21091)
    to several quantities.

    Attributes:
        schedule: A schedule known before sampling, such as `SkipPolicy(profile=..., calls=17)`; by
            default every second step and the last.
        velocities: How many computed velocities are combined, 1 to 6.
        latent: Combine the latents as well.
        displacement: Combine their displacement since the newest computed step as well.
        target: Share of the trajectory target, 1 is all, 0 is the local target alone. By default 1
            under a solver without memory, 0.3 under a multistep one. `"exact"` leads to the exact
            solution of the sample instead of its full run, which has an error of its own.
        ridge: Penalty relative to the mean square of each quantity.
        toward: The rule that the penalty pulls to.
        computed: Correct computed steps too.
        granularity: One weight for all channels (`"scalar"`) or one a `"channel"`.
        bound: Largest weight of a velocity that is accepted.
        start: A profile whose schedule and weights are used and judged, instead of fitting.
        steps_within: With the target `"exact"`, steps of the solution for each step; even.
        solution: The solution of the samples; `calibrate` makes it.

    Raises:
        PolicyError: A setting is out of range; the batch does not hold copies; or guidance is no
            fixed weighted sum of the branches.
        InputError: The trajectory does not start at step 0.

    Example:
        >>> schedule = SkipPolicy(profile="wan.safetensors", calls=17)  # doctest: +SKIP
        >>> profiler = FittedProfiler(schedule=schedule)  # doctest: +SKIP
        >>> Sampler(batch_size=16).calibrate(model, prompts, profiler=profiler)  # doctest: +SKIP
    """

    kind = KIND

    traits = Traits(seams=frozenset({Seam.LATENT}), corrects_computed=True, deterministic=True)
    calibration_copies = len(RUNS)

    schedule: Policy | None = None
    velocities: int = 4
    latent: bool = True
    displacement: bool = False
    target: float | Literal["exact"] | None = None
    ridge: float = 1e-4
    toward: Toward = "taylor"
    computed: bool = True
    granularity: Literal["scalar", "channel"] = "scalar"
    bound: float = 100.0
    start: str | Path | Profile | None = None
    steps_within: int = 8
    solution: Solution | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.velocities <= MOST:
            raise PolicyError(
                f"FittedProfiler(velocities={self.velocities}): it must be 1 to {MOST}"
            )
        if isinstance(self.target, str):
            if self.target != "exact":
                raise PolicyError(
                    f"FittedProfiler(target={self.target!r}): give a share in [0, 1], or 'exact'"
                )
        elif self.target is not None and not 0 <= self.target <= 1:
            raise PolicyError(f"FittedProfiler(target={self.target}): it must be in [0, 1]")
        if self.solution is not None and not self.is_exact:
            raise PolicyError(
                f"FittedProfiler got a solution and target={self.target}; give target='exact', or "
                "no solution"
            )
        if not self.ridge >= 0 or not self.bound > 0:
            raise PolicyError(
                f"FittedProfiler(ridge={self.ridge}, bound={self.bound}): the ridge must not be "
                "negative, the bound must be positive"
            )
        if self.schedule is not None and as_planner(self.schedule) is None:
            raise PolicyError(
                f"FittedProfiler got the schedule {self.schedule!r}, which decides while sampling; "
                "give one that is known before, such as SkipPolicy(calls=...)"
            )
        if self.schedule is not None and self.start is not None:
            raise PolicyError("FittedProfiler got schedule and start, which has one; drop schedule")

    def prepare(self) -> None:
        if self.start is not None:
            table = FittedTable.of(load_profile(self, self.start, (KIND,)))
            if table.refined is not None:
                raise PolicyError(
                    f"{self!r}: start has refined weights, which a judging round would lose; judge "
                    "a profile before it is refined"
                )
            if table.settings != self.settings(bool(table.settings.averaged)):
                raise PolicyError(
                    f"{self!r}: start was fitted with {table.settings}; judge it with the same "
                    "settings"
                )
        if self.schedule is not None:
            self.schedule.prepare()

    def settings(self, one_step: bool) -> FitSettings:
        """The settings that profiles share, under a solver without or with memory."""
        share = SHARES[one_step] if self.target is None else self.target
        return FitSettings(
            velocities=self.velocities,
            latent=int(self.latent),
            displacement=int(self.displacement),
            trajectory=1.0 if share == "exact" else share,
            ridge=self.ridge,
            toward=TOWARD.index(self.toward),
            bound=self.bound,
            computed=int(self.computed),
            averaged=int(one_step),
        )

    @property
    def is_exact(self) -> bool:
        """Whether the target is the exact solution."""
        return self.target == "exact"

    @property
    def substeps(self) -> int:
        """Steps of the solution for each step, where it is still wanted."""
        return self.steps_within if self.is_exact and self.solution is None else 0

    def with_solution(self, solution: Solution) -> Profiler:
        """With the solution that it leads to."""
        return replace(self, solution=solution)

    def steps(self, num_steps: int) -> frozenset[int]:
        """Computed steps of the schedule."""
        if self.schedule is None:
            return frozenset({*range(0, num_steps, 2), num_steps - 1})
        return frozenset(forecast([self.schedule], num_steps).computed)

    def next_profiler(self, profile: Profile) -> Profiler | None:
        """A sum of several batches is judged by the weights that it stands for."""
        judged = self.start is not None or FittedTable.of(profile).judged
        return None if judged else replace(self, schedule=None, start=profile)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        super().on_session_start(session)
        given, steps = None, self.steps(session.num_steps)
        settings = self.settings(is_one_step(session))
        if self.start is not None:
            profile = load_profile(self, self.start, (KIND,))
            require_match(profile, session, ())
            table = FittedTable.of(profile)
            given, steps = dict(enumerate(table.choices)), frozenset(table.computed)
        if self.is_exact:
            require_solution(self.solution, session, type(self).__name__)
        per_channel = self.granularity == "channel"
        session.state_of(
            self, lambda: PairedRun(session, steps, settings, per_channel, given, self.solution)
        )

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        # the first two copies are measured; a rule that they are compared with may diverge
        require_computed(self, step, call, rows=2 * (call.x.shape[0] // self.calibration_copies))
        return self._run_of(step.session).answer(step, call, output)

    @hookimpl
    def post_step(self, step: Step, sample: Tensor) -> None:
        self._run_of(step.session).end(step, sample)

    def _run_of(self, session: SessionInfo) -> PairedRun:
        def missing() -> PairedRun:
            raise PolicyError(
                f"{self!r} missed the start of the session: call its on_session_start"
            )

        return session.state_of(self, missing)

    def summarise(self, session: SessionInfo) -> Profile | None:
        run = self._run_of(session)
        if not run.finished:
            return None
        start = None if self.start is None else load_profile(self, self.start, (KIND,))
        return self.emit(session, describe_run(run, start), samples=run.rows)
