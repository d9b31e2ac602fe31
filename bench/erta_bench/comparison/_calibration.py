"""Calibrates the profiles of contenders, and counts what that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from erta_bench.comparison._contender import CalibratedBy
from erta_bench.comparison._runner import Runner
from erta_framework import Profile, Profiler
from erta_framework.calibration import Solution
from erta_framework.config import build_policies
from erta_framework.sampling import BatchEnd, Callback

FITTED_PROFILERS = ("fitted_profiler", "end_to_end_profiler")


@dataclass(slots=True)
class CallCounter(Callback):
    """Counts what went through the network over several runs.

    Attributes:
        samples: Samples in network calls and in trials, each guidance branch by itself.
    """

    samples: int = 0

    def on_batch_end(self, batch: BatchEnd) -> None:
        """Count a batch."""
        self.samples += batch.trace.network_samples + batch.trace.trial_samples


@dataclass(slots=True)
class Calibrator:
    """Calibrates; profiles that lead to the exact solution of the same samples share it.

    Attributes:
        runner: Runs them.
        solutions: Those that were made, by prompts, first seed and substeps.
    """

    runner: Runner
    solutions: dict[tuple[tuple[str, ...], int, int], Solution] = field(default_factory=dict)

    def calibrate(
        self,
        made: CalibratedBy,
        seam: str,
        options: dict[str, Any],
        prompts: Sequence[str],
        seed: int,
    ) -> tuple[Profile, int]:
        """Make a profile.

        Args:
            made: How.
            seam: Where.
            options: Settings of the profiler, with everything filled in.
            prompts: One a sample.
            seed: Of the first.

        Returns:
            The profile, and the network calls of each branch over all samples that it takes,
            those of its solution among them.
        """
        (profiler,) = build_policies([{made.profiler: options}])
        count = made.steps or self.runner.steps
        calls = 0
        if isinstance(profiler, Profiler) and profiler.substeps:
            solution = self._solve(prompts, seed, profiler.substeps)
            profiler = profiler.with_solution(solution)
            calls = solution.calls * len(prompts)
        # a fit over several batches has no judgement of all samples together: one batch
        batch = len(prompts) if made.profiler in FITTED_PROFILERS else self.runner.batch_size
        counter = CallCounter()
        sampler = self.runner.make_sampler(
            callbacks=[counter], num_steps=count, batch_size=batch, seam=seam
        )
        profile = sampler.calibrate(self.runner.model, prompts, seed=seed, profiler=profiler)
        # a driver that asks the network less often than its steps say counts by itself
        runs = profile.provenance.get("full_runs")
        if runs is None:
            return profile, calls + counter.samples // self.runner.branches
        return profile, calls + round(float(runs) * count * len(prompts))

    def _solve(self, prompts: Sequence[str], seed: int, substeps: int) -> Solution:
        """The solution of these samples, made when it is first asked for."""
        key = tuple(prompts), seed, substeps
        if key not in self.solutions:
            self.solutions[key] = self.runner.solve(prompts, seed, substeps)
        return self.solutions[key]
