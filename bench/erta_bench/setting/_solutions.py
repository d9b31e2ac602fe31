"""How exact the solutions are that a benchmark compares with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from erta_bench.core import Value, average
from erta_framework.calibration import Solution

SUBSTEPS = 4
"""Steps of the exact solution for each step of the full run, unless others are asked for."""
RANGE = 2.0
"""Largest less smallest value of a sample."""


@dataclass(slots=True)
class ExactSolutions:
    """How exact the solutions are that rows are compared with.

    Attributes:
        substeps: Steps for each step of the full run.
        errors: Estimated mean squared error of each.
        calls: Network calls of each sample and branch.
    """

    substeps: int
    errors: list[float] = field(default_factory=list)
    calls: int = 0

    def add(self, solution: Solution) -> None:
        """Count one in."""
        self.errors.append(solution.error)
        self.calls = solution.calls

    def describe(self) -> dict[str, Value]:
        """What a record says of them; the error as a PSNR in dB, like the rows."""
        error = average(self.errors) if self.errors else 0.0
        return {
            "solution_substeps": self.substeps,
            "solution_calls": self.calls,
            "solution_psnr": 10 * math.log10(RANGE**2 / error) if error > 0 else None,
        }
