"""`SensitivityProfiler`: sensitivities of the network along sampled trajectories."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

from torch import Tensor

from erta_framework import Call, Profile, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import InputError
from erta_framework.session import TRIAL
from erta_policies.sencache._sensitivity import (
    KIND,
    SensitivitySums,
    latent_sensitivity,
    time_sensitivity,
)
from erta_policies.shared import FirstBranch, RunProfiler, require_computed

TRAJECTORY = "sampled trajectories"


@dataclass(slots=True)
class PreviousEvaluation:
    """The evaluation of the step before."""

    index: int = -1
    time: float = 0.0
    x: Tensor | None = None
    output: Tensor | None = None


@dataclass(slots=True)
class SensitivityRun:
    """The sums of one request, its newest step, and the branch that it called first."""

    sums: SensitivitySums
    index: int = -1
    first_branch: FirstBranch = field(default_factory=FirstBranch)


class SensitivityProfiler(RunProfiler):
    """Observes full runs and measures how sensitive the network is to latents and timestep.

    Between two neighbouring steps (x, t) and (x', t') it runs the network once more, at (x', t),
    which splits the change of the output into that of the latents and that of the timestep:

    * Jx = ||f(x', t) - f(x, t)|| / ||x' - x||
    * Jt = ||f(x', t') - f(x', t)|| / |t' - t|, stored over the square root of the number of
      elements, so that the profile serves latents of any size

    One extra network call a step, counted as a trial, on the branch that is called first. Means are
    tabulated at t; the last step has none. Profiles of batches merge by adding. Nothing is emitted
    for a trajectory that failed or did not reach its last step.

    Source: SenCache, arXiv 2602.24208, measures both at noised clean latents instead, with x' one
    step of a solver away: see `measure_noised`. Measuring on the sampled trajectory, which needs
    no data and works through any pipeline, and Jt at x' instead of x, are ours; along a trajectory
    alone in its profile the score of one reused step is then never below the true change.

    Raises:
        PolicyError: A step was reused.
        InputError: The trajectory does not start at step 0, or has a single step.

    Example:
        >>> sorted(SensitivityProfiler().traits.requires)
        ['trial']
    """

    kind = KIND

    traits = Traits(requires=frozenset({TRIAL}), seams=frozenset({Seam.LATENT}), reads_latents=True)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        super().on_session_start(session)
        if session.num_steps < 2:
            raise InputError(
                f"SensitivityProfiler compares neighbouring steps, this run has "
                f"{session.num_steps}; calibrate with 2 steps or more"
            )
        session.state_of(self, lambda: SensitivityRun(SensitivitySums.empty(session.num_steps)))

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        require_computed(self, step, call)
        running = step.session.state_of(
            self, lambda: SensitivityRun(SensitivitySums.empty(step.num_steps))
        )
        running.index = step.index
        if not running.first_branch.is_first(step, call):
            return output
        before, now = call.state_of(self, PreviousEvaluation), step.interval.time
        raw = call.compute()
        if before.index == step.index - 1 and before.x is not None and before.output is not None:
            across = call.trial(call.x, before.time)
            jx = latent_sensitivity(across - before.output, call.x - before.x)
            jt = time_sensitivity(raw - across, now - before.time)
            running.sums.add(before.index, before.time, jx, jt)
        before.index, before.time = step.index, now
        before.x, before.output = call.x.clone(), raw.clone()
        return output

    def summarise(self, session: SessionInfo) -> Profile | None:
        running = session.state_of(
            self, lambda: SensitivityRun(SensitivitySums.empty(session.num_steps))
        )
        if running.index != session.num_steps - 1:
            return None
        return running.sums.profile(session, TRAJECTORY, session.shape[0])
