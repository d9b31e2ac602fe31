"""Why the worst samples are the worst: what the flow amplifies, and who gets them wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from erta_bench.core import Row, Value
from erta_bench.setting import CALIBRATION_SEEDS
from erta_bench.studies._amplification import (
    AccurateRuns,
    find_bend,
    fit_line,
    rank_correlation,
)
from erta_bench.studies._run import Study, StudyRun
from erta_framework import Policy
from erta_framework.calibration import Solution
from erta_framework.metrics import psnr
from erta_framework.sampling import LatentRecorder, Sampler, make_second_order, solve
from erta_policies.ertacache import ResidualProfiler
from erta_policies.fitted import EndToEndProfiler, FittedReuse
from erta_policies.forecast import Forecaster
from erta_policies.planning import MultistepSchedule
from erta_policies.taylorseer import TaylorSeer

CALLS: Final = 12
EARLY: Final = 0.25
"""The part of the steps after which runs are taken to their ends by accurate ones."""
PARTS: Final = (0.0, EARLY, 0.5)
"""Parts of the steps before which a difference is put into the latents."""
RANDOM: Final = 2
"""Random directions, at the noise."""
LINE: Final = Forecaster(basis="newton", order=1)
FULL: Final = "full run"


@dataclass(slots=True)
class Followed:
    """The measured samples: their exact solution, what amplifies them, and where methods end.

    Attributes:
        run: The study.
        sampler: That of the full run.
        solution: The exact solution.
        ends: Where accurate runs from the solution end, by part, `[N, C, ...]`.
        bends: Amplification of a difference along the bend of the path, by part, `[N]`.
        random: That of random differences of the noise, root mean square, `[N]`.
        quality: PSNR to the solution by name, `[N]`.
        early: The same of the error that was made in the first part of the steps alone.
        calls: Network calls by name.
    """

    run: StudyRun
    sampler: Sampler
    solution: Solution
    ends: dict[float, Tensor] = field(default_factory=dict)
    bends: dict[float, Tensor] = field(default_factory=dict)
    random: Tensor = field(default_factory=lambda: torch.zeros(0))
    quality: dict[str, Tensor] = field(default_factory=dict)
    early: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    @property
    def accurate(self) -> AccurateRuns:
        """Takes latents to the end."""
        return AccurateRuns(self.sampler, self.run.setting.model, self.run.setting.held_out)

    def amplify(self) -> None:
        """Measure by how much small differences grow."""
        generator = torch.Generator().manual_seed(self.run.reference.seed)
        for part in PARTS:
            self.run.bar.set_title(f"differences at {part:.0%} of the steps")
            step = round(part * self.run.steps)
            latents = self.solution.latents[:, step]
            directions = [find_bend(self.solution, step)]
            if not part:
                shape, count = latents.shape, RANDOM
                directions += [torch.randn(shape, generator=generator) for _ in range(count)]
            self.ends[part] = self.accurate.finish(latents, step)
            found = self.accurate.amplify(latents, step, directions, self.ends[part])
            self.bends[part] = found[0]
            if not part:
                self.random = found[1:].square().mean(dim=0).sqrt()

    def measure(self, name: str, policies: Sequence[Policy], *, follow: bool = False) -> None:
        """Sample under policies; with `follow` also see what went wrong early.

        The latents after the first part of the steps are then taken to the end by an accurate run,
        and compared with the same from the exact latents: what is between them is the error that
        was made in that part.
        """
        kept = LatentRecorder(into=[], every=1)
        self._end(name, self.sampler.with_policies([*policies, kept]))
        if follow:
            step = round(EARLY * self.run.steps)
            end = self.accurate.finish(kept.into[step - 1], step)
            self.early[name] = psnr(end, self.ends[EARLY])

    def measure_plain(self) -> None:
        """Second-order steps, as many as calls, nothing cached."""
        second, _ = make_second_order(self.sampler.solver)
        sigmas = second.schedule(CALLS).sigmas
        self._end("plain AB2", self.sampler.with_policies((), solver=second, sigmas=sigmas))

    def _end(self, name: str, sampler: Sampler) -> None:
        self.run.bar.set_title(name)
        setting = self.run.setting
        result, _ = setting.sample_held_out(sampler, self.run.reference.seed)
        self.quality[name] = psnr(result.samples, self.solution.samples)
        self.calls[name] = result.network_calls // (setting.branches * len(result.traces))

    def describe(self, name: str) -> Row:
        """The row of a method."""
        quality, size = self.quality[name], self.bends[EARLY]
        worst = int(quality.argmin())
        slope, explained = fit_line(size.log10(), quality)
        alike = quality - slope * (size.log10() - size.log10().mean())
        row: dict[str, Value] = {
            "group": "methods",
            "name": name,
            "calls": self.calls[name],
            "psnr_fine_mean": float(quality.mean()),
            "psnr_fine_std": float(quality.std(correction=0)),
            "psnr_fine_worst": float(quality.min()),
            "worst_sample": worst,
            "worst_rank": 1 + int((size > size[worst]).sum()),
            "correlation_random": rank_correlation(self.random, -quality),
            "correlation_full": rank_correlation(self.quality[FULL], quality),
            "explained": explained,
            "worst_alike": float(alike.min()),
        }
        for part, found in self.bends.items():
            row[f"correlation_{part:.0%}"] = rank_correlation(found, -quality)
        if name in self.early:
            early = self.early[name]
            row |= {"early_mean": float(early.mean()), "early_worst": float(early[worst])}
        return row

    def list_samples(self) -> Iterator[Row]:
        """A row for each sample: what amplifies it, and how near every method comes."""
        for number, prompt in enumerate(self.run.setting.held_out):
            row: dict[str, Value] = {
                "group": "samples",
                "name": f"sample {number}",
                "prompt": prompt,
                "amplification_random": float(self.random[number]),
            }
            for part, found in self.bends.items():
                row[f"amplification_{part:.0%}"] = float(found[number])
            for name, quality in self.quality.items():
                row[f"psnr_fine, {name}"] = float(quality[number])
            yield row


def study_worst(run: StudyRun) -> Sequence[Row]:
    """The full run, plain steps, a published cache and ours, sample by sample."""
    setting, substeps = run.setting, run.setting.substeps
    sampler = setting.make_sampler()
    assert isinstance(sampler, Sampler)  # the own loop, in every study
    followed = Followed(run, sampler, run.reference.solution)
    followed.amplify()
    followed.measure(FULL, [], follow=True)
    followed.measure_plain()
    followed.measure("TaylorSeer, whole output", [TaylorSeer(budget={"calls": CALLS}, first=1)])
    residual = run.calibrate(ResidualProfiler())
    plan = MultistepSchedule(profile=residual, budget={"calls": CALLS})
    followed.measure("multistep plan + line", [plan, LINE])
    led_to = solve(
        sampler, setting.model, setting.calibration, seed=CALIBRATION_SEEDS, substeps=substeps
    )
    profiler = EndToEndProfiler(
        schedule=plan, target="exact", steps_within=substeps, refine=1, solution=led_to
    )
    fitted = FittedReuse(profile=run.calibrate(profiler))
    followed.measure("fitted reuse, exact, multistep plan", [fitted], follow=True)
    return [*map(followed.describe, followed.quality), *followed.list_samples()]


WORST_SAMPLES = Study(
    title="Why the worst samples are the worst",
    run=study_worst,
    models=("shapes-wan", "shapes-flux", "shapes-unet", "galaxy-hsc32", "mixture"),
    columns={
        "name": "",
        "calls": "calls",
        "psnr_fine_mean": "mean",
        "psnr_fine_worst": "worst",
        "worst_sample": "which",
        "worst_rank": "rank",
        "correlation_25%": "corr.",
        "worst_alike": "alike",
        "amplification_25%": "amplified",
    },
    section="group",
)
