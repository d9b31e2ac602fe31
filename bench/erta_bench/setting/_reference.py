"""The full run of a setting with its exact solution, and rows measured against both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor

from erta_bench.core import Measurement, Value, describe_quality
from erta_bench.setting._progress import RunProgress
from erta_bench.setting._setting import Setting
from erta_bench.setting._solutions import ExactSolutions
from erta_framework.calibration import Solution
from erta_framework.plugins import Policy
from erta_framework.sampling import Samples


@dataclass(slots=True)
class Reference:
    """Full run and exact solution of the measured prompts, which every row is compared with.

    Attributes:
        setting: Makes the samplers.
        seed: First seed of the measured prompts.
        bar: Shows what runs.
        known: The exact solution, where it was already made.
        samples: What the full run gave.
        solution: The exact solution.
        outcome: Its times, and its qualities against itself and the solution.
    """

    setting: Setting
    seed: int
    bar: RunProgress
    known: InitVar[Solution | None] = None
    samples: Samples = field(init=False)
    solution: Solution = field(init=False)
    outcome: Measurement = field(default_factory=Measurement)

    def __post_init__(self, known: Solution | None) -> None:
        self.bar.set_title("full")
        sampler = self.setting.make_sampler(callbacks=[self.bar])
        self.samples, took = self.setting.sample_held_out(sampler, self.seed)
        self.bar.set_title("exact solution")
        self.solution = known or self.setting.solve_held_out(self.seed)
        self.add(self.outcome, self.samples, took.processor)

    def add(self, outcome: Measurement, result: Samples, processor: float) -> None:
        """Count a run of the same prompts from the same noise into an outcome."""
        outcome.add(result, self.samples, self.solution.samples, processor, self.setting.branches)

    def measure(
        self, title: str, policies: Iterable[Policy], steps: int | None = None
    ) -> tuple[Measurement, Tensor]:
        """Run the same prompts from the same noise with policies.

        Args:
            title: Shown while it runs.
            policies: What runs.
            steps: Steps of the run; None for those of the setting.

        Returns:
            What was measured, and the samples `[prompts, C, ...]`.

        Raises:
            CapabilityError: The sampler cannot serve a policy.
        """
        self.bar.set_title(title)
        sampler = self.setting.make_sampler(policies, steps, callbacks=[self.bar])
        result, took = self.setting.sample_held_out(sampler, self.seed)
        outcome = Measurement()
        self.add(outcome, result, took.processor)
        return outcome, result.samples

    def describe(self) -> dict[str, Value]:
        """For a record: how exact the exact solution is, and how near the full run comes to it."""
        solutions = ExactSolutions(self.setting.substeps)
        solutions.add(self.solution)
        quality = describe_quality(torch.cat(self.outcome.fine))
        return solutions.describe() | {f"full_run.{key}": value for key, value in quality.items()}
