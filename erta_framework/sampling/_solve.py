"""A nearly exact solution of samples, by second-order steps on a finer grid."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from erta_framework.calibration import Solution
from erta_framework.errors import CapabilityError, InputError
from erta_framework.plugins import Engine, Policy, Traits, hookimpl
from erta_framework.sampling._inputs import make_noise
from erta_framework.sampling._loop import SamplingLoop
from erta_framework.sampling._text_model import TextModel
from erta_framework.sampling.solvers import AdamsBashforth2, ComposedSolver, Solver, SolverRecipe
from erta_framework.session import Step

if TYPE_CHECKING:
    from erta_framework.sampling._sampler import Sampler

ORDER = 2
"""Order of the integrator: half of the step size is a quarter of the error."""


class LatentRecorder(Policy):
    """Keeps the latents at some steps, on the CPU.

    Attributes:
        into: Where they go, in the order of the steps.
        every: How many steps lie between them.
    """

    traits = Traits(static=True)
    into: list[Tensor]
    every: int = 1

    @hookimpl
    def post_step(self, step: Step, sample: Tensor) -> None:
        if (step.index + 1) % self.every == 0:
            self.into.append(sample.cpu())


def solve(
    sampler: Sampler, model: TextModel, prompts: Sequence[str], *, seed: int = 0, substeps: int = 8
) -> Solution:
    """The nearly exact solution of what a sampler samples, to calibrate and to compare with.

    Args:
        sampler: Its schedule, guidance and process are used; its policies are not.
        model: Encodes the prompts and predicts.
        prompts: One a sample.
        seed: Sample k draws its noise from `seed + k`.
        substeps: Steps for each step of the schedule; even.

    Raises:
        CapabilityError: The solver is not made of parts.
        InputError: `substeps` is not even, or there are no prompts.

    Example:
        >>> solution = solve(Sampler(num_steps=50), model, ["a red circle"])  # doctest: +SKIP
        >>> psnr(result.samples, solution.latents[:, -1])  # doctest: +SKIP
    """
    found = []
    for begin in range(0, len(prompts), sampler.batch_size):
        names = prompts[begin : begin + sampler.batch_size]
        seeds = [seed + begin + place for place in range(len(names))]

        def run(
            solver: Solver,
            sigmas: tuple[float, ...],
            recorder: LatentRecorder,
            names: Sequence[str] = names,
            seeds: Sequence[int] = seeds,
        ) -> Tensor:
            twin = copy.copy(sampler)
            twin.policies, twin.callbacks, twin.solver = (recorder,), (), solver
            twin.schedule = solver.schedule(len(sigmas) - 1, sigmas)
            twin.loop = SamplingLoop(Engine(twin.policies), solver, sampler.guidance)
            twin.sample(model, names, seeds=seeds)
            return solver.noised(None, make_noise(model, seeds, None), sigmas[0])

        found.append(solve_samples(sampler.solver, sampler.schedule.sigmas, substeps, run))
    return Solution.merge(found)


RunFinely = Callable[[Solver, tuple[float, ...], LatentRecorder], Tensor]
"""Samples on a finer grid under a recorder; the latents that it began with, `[N, C, ...]`."""


def solve_samples(
    solver: Solver, sigmas: Sequence[float], substeps: int, run: RunFinely
) -> Solution:
    """Solve samples with steps many times as fine, twice, which tells how exact that is.

    The steps are second-order Adams-Bashforth. With half as many of them the error is four times
    as large, so a third of the difference of both is the error of the finer one.

    Args:
        solver: The solver of the run; its process and grid stay, its integrator is exchanged.
        sigmas: Sigmas of the run, T + 1.
        substeps: Steps for each of them; even.
        run: Samples on a grid.

    Raises:
        InputError: `substeps` is not even, or below 2.
        CapabilityError: The solver is not made of parts.
    """
    if substeps < 2 or substeps % 2:
        raise InputError(f"substeps is {substeps}, it must be an even number from 2")
    second = make_second_order(solver)
    ends = []
    for count in (substeps // 2, substeps):
        recorder = LatentRecorder(into=[], every=count)
        start = run(second, divide_steps(sigmas, count), recorder)
        ends.append(recorder.into)
    rough, fine = ends
    error = (fine[-1].double() - rough[-1].double()) / (2**ORDER - 1)
    latents = torch.stack([start, *fine], dim=1)
    calls = (len(sigmas) - 1) * (substeps + substeps // 2)
    return Solution(tuple(sigmas), latents, float(error.square().mean()), substeps, calls)


def make_second_order(solver: Solver) -> ComposedSolver:
    """The same process and grid under Adams-Bashforth steps.

    Raises:
        CapabilityError: The solver is not made of parts.
    """
    parts = solver.parts if isinstance(solver, SolverRecipe) else solver
    if not isinstance(parts, ComposedSolver):
        raise CapabilityError(
            f"the exact solution is made with another integrator on the parts of the solver, and "
            f"{solver!r} has none; use a SolverRecipe or a ComposedSolver"
        )
    return replace(parts, integrator=AdamsBashforth2())


def divide_steps(sigmas: Sequence[float], count: int) -> tuple[float, ...]:
    """A grid with `count` steps for each, of equal size in sigma / (1 + sigma).

    That is finite for flows and for ratios of noise and clean part. The given sigmas stay exact.

    Example:
        >>> divide_steps((1.0, 0.0), 2)
        (1.0, 0.3333333333333333, 0.0)
    """
    found = []
    for start, end in pairwise(sigmas):
        low, high = end / (1 + end), start / (1 + start)
        shares = [high + (low - high) * part / count for part in range(1, count)]
        found += [start, *(share / (1 - share) for share in shares)]
    return (*found, sigmas[-1])
