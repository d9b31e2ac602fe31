"""What all rows of the study share, and the table that they are measured into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from torch import Tensor

from erta_bench.core import Row, Value, as_whole, describe_quality
from erta_bench.setting import (
    CALIBRATION_SEEDS,
    SUBSTEPS,
    choose_first_order_solver,
    repeat_prompts,
)
from erta_framework import CFG, Policy, Profile, Sampler
from erta_framework.calibration import Solution
from erta_framework.metrics import psnr
from erta_framework.sampling import Solver, TextModel
from erta_policies.ertacache import ResidualProfiler
from erta_policies.fitted import FittedProfiler, FittedReuse, FittedTable

Facts = dict[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What all rows share.

    Attributes:
        model: The model.
        calibration: Prompts to fit on, repeated as often as samples are asked for.
        held_out: Prompts that are measured.
        measured: How many samples are measured.
        samples: How many samples a fit has.
        steps: Steps of the full run.
        scale: Guidance scale.
        solver: Solver of all rows; by default the first-order one of what the model predicts.
        accelerator: `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.
        substeps: Steps of the exact solution for each step of the full run; even.
        console: Where to print what runs; None prints nothing.
    """

    model: TextModel
    calibration: Sequence[str]
    held_out: Sequence[str]
    measured: int = 32
    samples: int = 16
    steps: int = 50
    scale: float = 3.0
    solver: Solver | None = None
    accelerator: str = "auto"
    substeps: int = SUBSTEPS
    console: Console | None = None

    def make_sampler(
        self,
        policies: Sequence[Policy] = (),
        *,
        steps: int | None = None,
        solver: Solver | None = None,
        batch: int = 16,
    ) -> Sampler:
        """A sampler of this study with these policies."""
        return Sampler(
            policies,
            solver=solver or self.solver or choose_first_order_solver(self.model),
            guidance=CFG(scale=self.scale),
            num_steps=steps or self.steps,
            batch_size=batch,
            accelerator=self.accelerator,
        )

    def sample(self, sampler: Sampler) -> tuple[Tensor, float]:
        """The measured samples, and network calls of each branch."""
        found = sampler.sample(self.model, repeat_prompts(self.held_out, self.measured), seed=0)
        branches = len(sampler.guidance.names)
        return found.samples, found.network_calls / (branches * len(found.traces))

    def solve(self) -> Solution:
        """The nearly exact solution of the measured samples."""
        prompts = repeat_prompts(self.held_out, self.measured)
        return self.make_sampler().solve(self.model, prompts, seed=0, substeps=self.substeps)

    def residuals(self) -> Profile:
        """The residual profile that ERTACache's schedule is planned from."""
        self.say("calibrating ERTACache")
        prompts = repeat_prompts(self.calibration, 16)
        sampler = self.make_sampler()
        return sampler.calibrate(
            self.model, prompts, seed=CALIBRATION_SEEDS, profiler=ResidualProfiler()
        )

    def fit(self, profiler: FittedProfiler, samples: int | None = None) -> Profile:
        """A fit, in one batch."""
        count = samples or self.samples
        prompts = repeat_prompts(self.calibration, count)
        sampler = self.make_sampler(batch=count)
        return sampler.calibrate(self.model, prompts, seed=CALIBRATION_SEEDS, profiler=profiler)

    def say(self, text: str) -> None:
        """Print what runs."""
        if self.console is not None:
            self.console.print(text, highlight=False)


@dataclass(slots=True)
class StudyTable:
    """Rows of one study and what they are compared with."""

    study: Study
    rows: list[Row]
    reference: Tensor
    solution: Solution

    @classmethod
    def of(cls, study: Study, part: str, where: str = "") -> StudyTable:
        """Run the full trajectory of the measured samples, and solve them; the first row is its.

        Args:
            study: What all rows share.
            part: The part of the study.
            where: What the full run of this table differs in; empty where there is one table.
        """
        study.say("full run")
        samples, calls = study.sample(study.make_sampler())
        table = cls(study, [], samples, study.solve())
        facts: Facts = {"budget": None, "part": part, **({"where": where} if where else {})}
        table.count(f"{where}: full" if where else "full", "full", samples, calls, facts)
        return table

    def add(
        self,
        name: str,
        kind: str,
        sampler: Sampler,
        facts: Facts,
        base: Tensor | None = None,
    ) -> Tensor:
        """Measure one row.

        Args:
            name: The row's name.
            kind: `ours`, `peer`, `composed` or `plain`.
            sampler: Runs it.
            facts: Further keys of the record.
            base: PSNR `[samples]` that the gain is relative to; None for no gain.

        Returns:
            PSNR against the full run, `[samples]`.
        """
        self.study.say(name)
        samples, calls = self.study.sample(sampler)
        return self.count(name, kind, samples, calls, facts, base)

    def count(
        self,
        name: str,
        kind: str,
        samples: Tensor,
        calls: float,
        facts: Facts,
        base: Tensor | None = None,
    ) -> Tensor:
        """Compare samples with the full run and the exact solution; see `add`."""
        quality = psnr(samples, self.reference)
        gain = None if base is None else (quality - base).mean().item()
        self.rows.append(
            {
                "name": name,
                "kind": kind,
                "calls": as_whole(calls),
                **describe_quality(psnr(samples, self.solution.samples)),
                **describe_quality(quality, "psnr"),
                "gain_mean": gain,
                "samples": len(quality),
                **facts,
            }
        )
        return quality

    def add_fit(self, name: str, profile: Profile, base: Tensor, facts: Facts) -> None:
        """Measure a fit, with its error on its own calibration samples."""
        weights = FittedTable.of(profile)
        self.add(
            name,
            "ours",
            self.study.make_sampler([FittedReuse(profile=profile, allow=("guidance",))]),
            {
                **facts,
                "fitted_samples": profile.samples,
                "fitted_error": weights.errors["fitted"] ** 0.5,
                "taylor_error": weights.errors["taylor"] ** 0.5,
                "plain_error": weights.errors["plain"] ** 0.5,
                "kept": weights.kept,
            },
            base,
        )
