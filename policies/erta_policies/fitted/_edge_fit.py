"""A cached run that fits its weights on the way, with network calls at computed steps alone.

Between two computed steps the latents follow a straight line in the solver's variable. Where that
line ends is all that counts, since nothing is asked in between. So at each computed step one set
of weights is fitted to lead to the known solution at the *next computed step*, and the velocity
that they make is held until there. A schedule of 12 calls is tried out by 12 calls this way, where
a fit beside the full run takes four full runs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from erta_framework import Call, Needs, Policy, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.budgets import ListedSteps
from erta_framework.calibration import SampleWith, Solution
from erta_framework.errors import PolicyError
from erta_policies.fitted import _features as features
from erta_policies.fitted import _normal_equations as equations
from erta_policies.fitted._batch_checks import (
    check_nodes,
    require_one_step,
    require_two_samples,
)
from erta_policies.fitted._cached_run import CachedRun, combine_features
from erta_policies.fitted._guided_branches import GuidedBranches
from erta_policies.fitted._normal_equations import FitSettings
from erta_policies.fitted._solver_variable import SolverVariable


class EdgeFit(Policy):
    """Leads samples to a known solution under one schedule, beside `ListedSteps` of it.

    Source: ours.

    Attributes:
        goal: Where the samples go, at every sigma.
        steps: Computed steps of the schedule.
        settings: How to fit.

    Raises:
        PolicyError: The solver has memory, a batch has one sample, or guidance is no fixed weighted
            sum.
        InputError: The goal is of other samples or of another schedule.
    """

    traits = Traits(
        seams=frozenset({Seam.LATENT}),
        memory=Needs(evaluations=1),
        corrects_computed=True,
        deterministic=True,
    )

    goal: Solution
    steps: tuple[int, ...]
    settings: FitSettings

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        require_one_step(session)
        self.goal.require_sigmas(session.sigmas)
        session.state_of(self, lambda: EdgeRun(session, self.steps, self.settings, self.goal))

    @hookimpl
    def forward(self, step: Step, call: Call) -> Tensor:
        return self._run_of(step.session).answer(step, call)

    @hookimpl
    def post_step(self, step: Step, sample: Tensor) -> None:
        self._run_of(step.session).end(step, sample)

    def _run_of(self, session: SessionInfo) -> EdgeRun:
        def missing() -> Any:
            raise PolicyError(
                f"{type(self).__name__} missed the start of the session: call its on_session_start"
            )

        found: EdgeRun = session.state_of(self, missing)
        return found


class EdgeRun:
    """State of one run.

    Args:
        session: Facts of the run.
        steps: Computed steps.
        settings: How to fit.
        goal: Where the samples go.
    """

    def __init__(
        self,
        session: SessionInfo,
        steps: tuple[int, ...],
        settings: FitSettings,
        goal: Solution,
    ) -> None:
        # the latents have not moved since a computed step when it is fitted
        self.settings = replace(settings, trajectory=1.0, displacement=0)
        self.goal, self.exact = goal, torch.zeros(0)
        self.steps, self.sigmas = steps, session.sigmas
        self.variable = SolverVariable.of(session)
        self.nodes = check_nodes([self.variable.node(sigma) for sigma in session.sigmas])
        self.channel_dim = session.channel_dim
        self.wide = torch.float32 if session.device.type == "mps" else torch.float64
        self.branches = GuidedBranches(True, self.wide, copies=1)
        self.run = CachedRun()
        self.computed: list[int] = []
        self.held: dict[str, Tensor] = {}
        self.folds = torch.zeros(0, dtype=torch.long, device=session.device)
        self.fitted = self.reused = False

    def answer(self, step: Step, call: Call) -> Tensor:
        """What a branch says: the network, or what is held; the last one steers the samples."""
        reused = call.reused and not self.branches.is_new(step)
        output = self.held[call.branch].clone() if reused else call.compute()
        self.reused = reused or (self.reused and bool(self.branches.outputs))
        last = self.branches.add(step, call, output)
        if last and not reused:
            self._add(step.index)
        if last and not (reused and self.fitted):
            output = self.branches.steer(self._fit(step), output, kept=0)
            self.fitted = True
        self.held[call.branch] = output.clone()  # a pipeline may write into what it gets
        return output

    def end(self, step: Step, sample: Tensor) -> None:
        """After a step: learn how branches weigh, and cache the first step with a set of them."""
        branches = self.branches
        if not branches.batch:
            require_two_samples(len(sample))
            branches.begin(len(sample))
            assert branches.x is not None
            self.exact = self.goal.find(branches.x).to(self.wide)
            self.folds = equations.find_folds(branches.x)
        if branches.learn(step, sample, self.variable):
            if self.reused:
                raise PolicyError(
                    f"the branches change to {', '.join(branches.names)} at step {step.index}, "
                    "which is reused, and this driver did not say so before: the search of a "
                    "schedule has no velocity of them; calibrate with search=0"
                )
            branches.verify(step)
            self.run.velocities, self.computed = [], []
            self._add(step.index)
            self.fitted = False
        branches.end()

    def _add(self, index: int) -> None:
        """Cache the network's velocity."""
        assert self.branches.x is not None
        self.run.add(self.branches.guide(), self.branches.x, self.settings.velocities)
        self.computed.append(index)

    def _fit(self, step: Step) -> Tensor:
        """The velocity that leads nearest to the solution at the next computed step."""
        following = [index for index in self.steps if index > step.index]
        end = following[0] if following else step.num_steps
        edge = replace(step.interval, end=self.sigmas[end])
        x, depth = self.branches.x, self.settings.velocities
        assert x is not None
        target = self.variable.lead_to(edge, x, self.exact[:, end])
        found = features.build_features(self.run.velocities, x, x, depth)
        values = [each.movedim(self.channel_dim, 1) for each in (*found, target, target)]
        sums = equations.sum_products(values, self.folds, per_channel=False)
        kept = self.computed[-len(self.run.velocities) :]
        nodes = [self.nodes[index] for index in reversed(kept)]
        ends = (self.nodes[step.index], self.nodes[end])
        choice = equations.choose_weights(sums.cpu(), self.settings, nodes, ends, computed=False)
        return combine_features(found, choice.weights, self.channel_dim)


def try_steps(
    sample: SampleWith, goal: Solution, settings: FitSettings, steps: tuple[int, ...], keep: bool
) -> Tensor:
    """The samples at the end of a run of a schedule, `[N, C, ...]`.

    Args:
        sample: The samples under policies.
        goal: Where they should go.
        settings: How to fit.
        steps: Computed steps.
        keep: The next runs begin like this one.
    """
    parts = (ListedSteps(steps=steps), EdgeFit(goal=goal, steps=steps, settings=settings))
    return sample(parts, keep=keep)
