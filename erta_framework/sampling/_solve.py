"""A nearly exact solution of samples, by second-order steps on a finer grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from erta_framework.calibration import Solution, check_substeps, divide_steps
from erta_framework.errors import CapabilityError
from erta_framework.plugins import Policy, Traits, hookimpl
from erta_framework.sampling._inputs import as_seeds, make_noise
from erta_framework.sampling._text_model import TextModel
from erta_framework.sampling.solvers import (
    AdamsBashforth2,
    ComposedSolver,
    DiscreteVP,
    Parametrisation,
    Solver,
    SolverRecipe,
    SolverState,
)
from erta_framework.session import Interval, Step

if TYPE_CHECKING:
    from erta_framework.sampling._sampler import Sampler


class LatentRecorder(Policy):
    """Keeps the latents at some steps, on the CPU.

    Attributes:
        into: Where they go, in the order of the steps.
        every: How many steps lie between them; 0 for those at the end alone.
    """

    traits = Traits(static=True)
    into: list[Tensor]
    every: int = 0

    @hookimpl
    def post_step(self, step: Step, sample: Tensor) -> None:
        if (step.index + 1) % (self.every or step.num_steps) == 0:
            self.into.append(sample.cpu())


@dataclass(frozen=True, slots=True)
class FineSteps(AdamsBashforth2):
    """Adams-Bashforth steps down to the smallest sigma that the network knows, and one below it.

    Attributes:
        least: That sigma; the step from it is to what the network says is clean.
    """

    least: float = 0.0

    def step(
        self,
        form: Parametrisation,
        x: Tensor,
        output: Tensor,
        interval: Interval,
        state: SolverState,
    ) -> tuple[Tensor, SolverState]:
        """As `AdamsBashforth2`, and Euler's from `least` on."""
        before = None if interval.start <= self.least else state
        return AdamsBashforth2.step(self, form, x, output, interval, before)


def solve(
    sampler: Sampler,
    model: TextModel,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    substeps: int = 8,
) -> Solution:
    """The nearly exact solution of what a sampler samples, to calibrate and to compare with.

    The steps are second-order Adams-Bashforth on a finer grid. Each sample runs twice, once with
    half as many steps, which tells how exact it is.

    Args:
        sampler: Its schedule, guidance and process are used; its policies are not.
        model: Encodes the prompts and predicts.
        prompts: One a sample.
        seed: Sample k draws its noise from `seed + k`.
        seeds: The seed of each sample instead.
        substeps: Steps for each step of the schedule; even.

    Raises:
        CapabilityError: The solver is not made of parts.
        InputError: `substeps` is not even, there are no prompts, or not one seed for each.

    Example:
        >>> solution = solve(Sampler(num_steps=50), model, ["a red circle"])  # doctest: +SKIP
        >>> psnr(result.samples, solution.samples)  # doctest: +SKIP
    """
    check_substeps(substeps)
    sigmas, (second, least) = sampler.schedule.sigmas, make_second_order(sampler.solver)

    def run(count: int, names: Sequence[str], seeds: Sequence[int]) -> Tensor:
        recorder = LatentRecorder(into=[], every=count)
        grid = divide_steps(sigmas, count, least)
        twin = sampler.with_policies((recorder,), callbacks=(), solver=second, sigmas=grid)
        twin.sample(model, names, seeds=seeds)
        start = second.noised(None, make_noise(model, seeds, None), sigmas[0])
        return torch.stack([start, *recorder.into], dim=1)

    numbers, found = as_seeds(seeds, seed, len(prompts)), []
    for begin in range(0, len(prompts), sampler.batch_size):
        names = prompts[begin : begin + sampler.batch_size]
        chosen = numbers[begin : begin + len(names)]
        rough, fine = (run(count, names, chosen) for count in (substeps // 2, substeps))
        found.append(Solution.of_runs(sigmas, rough, fine, substeps))
    return Solution.merge(found)


def make_second_order(solver: Solver) -> tuple[ComposedSolver, float]:
    """The same process and grid under second-order steps, and the least sigma of the network.

    Raises:
        CapabilityError: The solver is not made of parts.
    """
    parts = solver.parts if isinstance(solver, SolverRecipe) else solver
    if not isinstance(parts, ComposedSolver):
        raise CapabilityError(
            f"the exact solution is made with another integrator on the parts of the solver, and "
            f"{solver!r} has none; use a SolverRecipe or a ComposedSolver"
        )
    process = parts.form.process
    least = process.training_sigmas[0] if isinstance(process, DiscreteVP) else 0.0
    return replace(parts, integrator=FineSteps(least)), least
