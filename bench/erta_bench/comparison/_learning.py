"""Trains the solvers of rows that are learned solvers, on the calibration samples of all rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from erta_bench.comparison._own_runner import OwnRunner
from erta_bench.comparison._runner import Runner
from erta_bench.learned import LearnedSolver, Trained, Trainer, Training, TrainingSamples
from erta_bench.setting import CALIBRATION_SEEDS
from erta_framework import CFG
from erta_framework.errors import InputError
from erta_framework.sampling import Guidance, Solver, sample_noise

Target = Literal["exact", "full"]
"""Where the trained runs should end: at the exact solution, or where the full run ends."""


@dataclass(slots=True)
class SolverTraining:
    """Trains one solver for each target and number of calls.

    Attributes:
        runner: Has the model and what all rows share.
        prompts: Prompts to train on; those that the profiles are calibrated on.
        training: How.
    """

    runner: Runner
    prompts: Sequence[str]
    training: Training = field(default_factory=Training)
    _targets: dict[Target, tuple[Tensor, int]] = field(default_factory=dict)
    _trained: dict[tuple[Target, int], Trained] = field(default_factory=dict)

    def train(self, target: Target, calls: int) -> LearnedSolver:
        """The solver of so many network calls, trained when it is first asked for.

        Raises:
            InputError: There is no such target, or there are too few calibration samples.
        """
        if (target, calls) not in self._trained:
            ends, _ = self._find_target(target)
            trainer = Trainer(self.runner.model, self.guidance, self._draw(ends), self.training)
            self._trained[target, calls] = trainer.train(self.solver, calls)
        return self._trained[target, calls].solver

    def count_calls(self, target: Target, calls: int) -> int:
        """Network calls of each branch, over all samples, that a solver's training took.

        With those of the runs that it was trained to end like.
        """
        return self._trained[target, calls].calls + self._find_target(target)[1]

    @property
    def guidance(self) -> Guidance:
        """That of all rows; both branches in one call, which is faster and as many samples."""
        if isinstance(self.runner, OwnRunner):
            return self.runner.guidance
        return CFG(scale=self.runner.guidance_scale, batched=True)

    @property
    def solver(self) -> Solver:
        """A solver of the own loop with the process and the grid of the model's pipeline."""
        return self.runner.through.solver

    def _find_target(self, target: Target) -> tuple[Tensor, int]:
        """Where the samples should end, and the network calls of each branch that took."""
        if target not in ("exact", "full"):
            raise InputError(f"the target of a learned solver is {target!r}; give exact or full")
        if target not in self._targets:
            made = self._solve() if target == "exact" else self._run_full()
            self._targets[target] = made
        return self._targets[target]

    def _solve(self) -> tuple[Tensor, int]:
        found = self.runner.solve(self.prompts, CALIBRATION_SEEDS)
        return found.samples, found.calls * len(self.prompts)

    def _run_full(self) -> tuple[Tensor, int]:
        sampler = self.runner.make_sampler()
        found = sampler.sample(self.runner.model, self.prompts, seed=CALIBRATION_SEEDS)
        return found.samples, self.runner.steps * len(self.prompts)

    def _draw(self, ends: Tensor) -> TrainingSamples:
        """The calibration samples: noise, conditions and where they should end."""
        model, count = self.runner.model.to(self.runner.device), len(self.prompts)
        seeds = range(CALIBRATION_SEEDS, CALIBRATION_SEEDS + count)
        noise = sample_noise(model.latent_shape, seeds)
        first = self.solver.schedule(self.runner.steps).sigmas[0]
        cond, uncond = model.encode([*self.prompts, *[""] * count]).detach().chunk(2)
        start = self.solver.noised(None, noise, first)
        return TrainingSamples(start.to(cond), cond, uncond, ends.to(cond))
