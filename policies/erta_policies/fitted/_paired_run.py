"""The calibration run: full run and cached runs of the same samples, side by side in one batch.

A batch holds every sample several times. The first copy is the full run. The second is the cached
run under the weights fitted so far. The others are cached runs under rules that need no fit, to
compare with. At each step the first copy says where the second should be; the weights of this step
are solved, and the second copy goes on with them. So each step sees the states that the fit so far
has led to, and all samples of the batch are fitted together.

The fit is on the guided velocity. How much each branch weighs in it is read off the full run, see
`BranchWeights`. Then one branch alone, the last of a step, is changed so that the combination
becomes what it should be.

With n samples of R = 4 copies, latents and outputs of a call are `[R n, C, ...]`; one copy is
`[n, C, ...]`. What holds after every step: copy 0 has moved as without this profiler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from erta_framework import Call, SessionInfo, Step
from erta_framework.calibration import Solution
from erta_framework.errors import PolicyError
from erta_policies.fitted import _features as features
from erta_policies.fitted import _normal_equations as equations
from erta_policies.fitted._batch_checks import check_copies, check_nodes, count_samples
from erta_policies.fitted._cached_run import RUNS, CachedRun, combine_features
from erta_policies.fitted._guided_branches import GuidedBranches
from erta_policies.fitted._normal_equations import FOLDS, FitSettings, StepChoice
from erta_policies.fitted._solver_variable import SolverVariable, is_one_step


class PairedRun:
    """State of one calibration session.

    Args:
        session: Facts of the run.
        computed: Computed steps of the schedule.
        settings: How to fit.
        per_channel: Whether each channel has weights of its own.
        given: Weights of an earlier round by step, to use instead of solving.
        solution: Where the samples really go, to lead to instead of the full run.

    Attributes:
        rows: n, samples of the batch without their copies.
        sums: Products of all pairs of quantities, `[FOLDS, T, C or 1, Q, Q]`.
        errors: Squared error of each cached run at the end, summed, `[R - 1]`.
        exact: The samples' solution at every sigma, `[n, T + 1, C, ...]`, if it is the target.
        full_error: Squared error of the full run at the end, summed, where `exact` is known.
        depths: Velocities that were available at each step, `[T]`.
        computed: Steps that were computed.
        finished: Whether the last step is done.
    """

    def __init__(
        self,
        session: SessionInfo,
        computed: frozenset[int],
        settings: FitSettings,
        per_channel: bool,
        given: Mapping[int, StepChoice] | None,
        solution: Solution | None = None,
    ) -> None:
        self.settings, self.per_channel, self.given = settings, per_channel, given
        self.planned = computed
        self.computed: list[int] = []
        count_samples(session.shape[0])
        self.solution = solution
        self.exact: Tensor | None = None
        self.full_error = 0.0
        self.rows = 0
        self.variable = SolverVariable.of(session)
        self.nodes = check_nodes([self.variable.node(sigma) for sigma in session.sigmas])
        # the plain run does what core does without a predictor
        self.rules = {"plain": "plain" if session.reused == "residual" else "velocity"}
        self.channel_dim = session.channel_dim
        self.elements = math.prod(session.shape[1:])
        size = features.EXTRA + features.TARGETS + settings.velocities
        channels = session.shape[session.channel_dim] if per_channel else 1
        wide = torch.float32 if session.device.type == "mps" else torch.float64
        self.sums = torch.zeros(
            FOLDS, session.num_steps, channels, size, size, dtype=wide, device=session.device
        )
        self.errors = torch.zeros(len(RUNS) - 1, dtype=wide, device=session.device)
        self.folds = torch.zeros(0, dtype=torch.long, device=session.device)
        self.depths = torch.zeros(session.num_steps, dtype=torch.float64)
        self.branches = GuidedBranches(is_one_step(session), wide, len(RUNS))
        self.runs = {name: CachedRun() for name in RUNS[1:]}
        self.answered = False
        self.finished = False

    # ------------------------------------------------------------------ one branch of a step
    def answer(self, step: Step, call: Call, output: Tensor) -> Tensor:
        """The network's output, or for the last branch the output that steers the copies."""
        if not self.branches.outputs:
            self.answered = False
        if not self.branches.add(step, call, output):
            return output
        return self.branches.steer(self._step(step), output, self.rows)

    def _begin(self, batch: int) -> None:
        """Take note of the batch, and check that it holds each sample once a run."""
        self.rows = count_samples(batch)
        self.branches.begin(batch)
        assert self.branches.x is not None
        check_copies(self.branches.x, "latents")
        if self.solution is not None:
            self.exact = self.solution.find(self.branches.x[: self.rows]).to(self.sums.dtype)
        for branch, pieces in self.branches.outputs.items():
            for piece in pieces:
                check_copies(piece, f"outputs of branch {branch!r}")

    # ------------------------------------------------------------------------------ the step
    def _step(self, step: Step) -> Tensor:
        """Solve for the weights of a step; the guided velocity that every copy should have.

        The trajectory target is the velocity that leads copy 1 back to the full run within this
        step, or to the exact solution.
        """
        assert self.branches.x is not None
        network = self.branches.guide().chunk(len(RUNS))
        xs = self.branches.x.chunk(len(RUNS))
        computes = step.index in self.planned
        if computes:
            self._computed(step.index, network, xs)
        interval = self.variable.nodes(step.interval)
        if self.exact is None:
            target = self.variable.close_gap(step.interval, network[0], xs[0], xs[1])
        else:
            target = self.variable.lead_to(step.interval, xs[1], self.exact[:, step.index + 1])
        run = self.runs["fitted"]
        assert run.start is not None
        depth = self.settings.velocities
        found = features.build_features(run.velocities, xs[1], run.start, depth)
        values = [value.movedim(self.channel_dim, 1) for value in (*found, network[1], target)]
        step_sums = equations.sum_products(values, self.folds, self.per_channel)
        self.sums[:, step.index] += step_sums
        kept = self.computed[-len(run.velocities) :]
        self.depths[step.index] = len(kept)
        nodes = [self.nodes[index] for index in reversed(kept)]
        if self.given is not None:
            choice = self.given[step.index]
        else:
            choice = equations.choose_weights(
                step_sums.cpu(), self.settings, nodes, interval, computes
            )
        wanted = combine_features(found, choice.weights, self.channel_dim)
        self.answered = True
        ends = self.settings.interval(*interval)
        rivals = [
            network[copy]
            if computes
            else self.runs[name].follow_rule(
                self.rules.get(name, name), xs[copy], nodes, ends, self.channel_dim
            )
            for copy, name in enumerate(RUNS[2:], start=2)
        ]
        return torch.cat([network[0], wanted, *rivals])

    def _computed(self, index: int, network: Sequence[Tensor], xs: Sequence[Tensor]) -> None:
        self.computed.append(index)
        depth = max(2, self.settings.velocities)
        for name, velocity, x in zip(RUNS[1:], network[1:], xs[1:], strict=True):
            self.runs[name].add(velocity, x, depth)

    # --------------------------------------------------------------------------- after a step
    def end(self, step: Step, sample: Tensor) -> None:
        """Learn or check how branches weigh, and at the last step measure the cached runs.

        Args:
            step: The step that has just been made.
            sample: Latents after it, `[R n, C, ...]`.

        Raises:
            PolicyError: Guidance is no weighted sum that stays the same.
        """
        if not self.branches.batch:
            self._begin(len(sample))
        if self.branches.learn(step, sample, self.variable):
            self._start_over(step)
        elif not self.answered:
            raise PolicyError(
                f"FittedProfiler was asked for the branches {', '.join(self.branches.names)} at "
                f"step {step.index} in another order than before; calibrate without other plugins"
            )
        self.branches.verify(step)
        self.branches.end()
        if step.index == step.num_steps - 1:
            full, *others = sample.to(self.sums.dtype).chunk(len(RUNS))
            if self.exact is not None:
                self.full_error = float(((full - self.exact[:, -1]) ** 2).sum())
                full = self.exact[:, -1]
            self.errors += torch.stack([((other - full) ** 2).sum() for other in others])
            self.finished = True

    def _start_over(self, step: Step) -> None:
        """Cache the first step with these branches: the network's output, whatever the schedule."""
        assert self.branches.x is not None
        if step.index == 0:
            self.folds = equations.find_folds(self.branches.x[: self.rows])
        for run in self.runs.values():
            run.velocities = []  # of another set of branches
        network = self.branches.guide().chunk(len(RUNS))
        self._computed(step.index, network, self.branches.x.chunk(len(RUNS)))
