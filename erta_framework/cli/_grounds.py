"""Where `erta compare` samples: a bundled model, or a loaded pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from erta_framework.calibration import Profile, Solution
from erta_framework.cli._models import get_demo_prompts
from erta_framework.cli._options import PipelineOptions
from erta_framework.cli._pipeline import PipelineReplayer
from erta_framework.cli._samplers import make_sampler_at_seam
from erta_framework.config import RunConfig
from erta_framework.errors import CapabilityError, InputError
from erta_framework.plugins import Policy, Profiler
from erta_framework.report import Method
from erta_framework.sampling import (
    Callback,
    ProgressBar,
    TextModel,
    TextSampler,
)

SUBSTEPS = 4
"""Steps of the exact solution for each step of the run; it costs six full runs."""
CALIBRATED, CALIBRATION_SEED = 8, 1_000_000
"""Prompts that a profile is made from, and their first seed, far from those of the comparison."""
Exact = tuple[Tensor | None, str]
"""The exact solution, or None, and how exact it is, or why there is none."""


class Ground(Protocol):
    """Samples, calibrates and solves for a comparison."""

    @property
    def config(self) -> RunConfig:
        """The settings that all methods share."""
        ...

    @property
    def model(self) -> Any:
        """What the samplers take as their model."""
        ...

    @property
    def steps(self) -> int:
        """Steps of the full run; 0 where only running it tells."""
        ...

    def count_requests(self, prompts: int) -> int:
        """Requests that so many prompts make."""
        ...

    def make_sampler(
        self,
        method: Method,
        policies: Sequence[Policy],
        callbacks: Sequence[Callback],
        batch_size: int,
    ) -> TextSampler:
        """A sampler of a method."""
        ...

    def calibrate(self, name: str, profiler: Profiler) -> Profile:
        """A profile for the policy of this name."""
        ...

    def solve(self, full: Method, prompts: Sequence[str], seed: int) -> Exact:
        """The exact solution of the full run."""
        ...

    def describe(self) -> dict[str, str]:
        """Facts for the report."""
        ...


@dataclass(frozen=True, slots=True)
class BundledGround:
    """A bundled model, in the own loop or at the trunk seam in its own pipeline."""

    config: RunConfig
    model: TextModel

    @property
    def steps(self) -> int:
        """Steps of the schedule of the configuration."""
        return self.config.solver.schedule(self.config.steps, self.config.sigmas).num_steps

    def count_requests(self, prompts: int) -> int:
        """A request is a batch."""
        return -(-prompts // self.config.batch_size)

    def make_sampler(
        self,
        method: Method,
        policies: Sequence[Policy],
        callbacks: Sequence[Callback],
        batch_size: int,
    ) -> TextSampler:
        """A sampler of a method; sigmas of the configuration are those of the full run."""
        config = replace(
            self.config,
            steps=method.steps,
            solver=method.solver or self.config.solver,
            batch_size=min(batch_size, self.config.batch_size),
        )
        if config.sigmas is not None and len(config.sigmas) != method.steps + 1:
            config = replace(config, sigmas=None)
        return make_sampler_at_seam(config, self.model, policies, callbacks)

    def calibrate(self, name: str, profiler: Profiler) -> Profile:
        """A profile from the model's own calibration prompts.

        Raises:
            InputError: It brings none.
        """
        offered = get_demo_prompts(self.model)
        prompts = profiler.calibration_prompts or (offered[0][:CALIBRATED] if offered else ())
        if not prompts:
            raise InputError(
                f"{name} reads a profile, and the model {self.config.model!r} brings no prompts to "
                f"make one from; run `erta calibrate --policy {name}` and give --profile FILE"
            )
        sampler = make_sampler_at_seam(self.config, self.model, (), [ProgressBar()])
        return sampler.calibrate(
            self.model, list(prompts), seed=CALIBRATION_SEED, profiler=profiler
        )

    def solve(self, full: Method, prompts: Sequence[str], seed: int) -> Exact:
        """By many second-order steps, in the own loop or where the sampler offers it."""
        sampler = self.make_sampler(full, (), (), len(prompts))
        offer = getattr(sampler, "solve", None)  # a model's own sampler may have none
        if offer is None:
            return None, f"none, {type(sampler).__name__} offers no finer run of its grid (`solve`)"
        return solve_with(partial(offer, self.model, prompts, seed=seed, substeps=SUBSTEPS))

    def describe(self) -> dict[str, str]:
        """Model, network, loop."""
        made = make_sampler_at_seam(self.config, self.model, (), ())
        shape = " x ".join(map(str, self.model.latent_shape))
        network = ", ".join(f"{key} {value}" for key, value in self.model.fingerprint().items())
        return {
            "model": f"{self.config.model}, samples of {shape}",
            "network": network,
            **made.facts,
        }


@dataclass(frozen=True, slots=True)
class PipelineGround:
    """A loaded pipeline; one prompt is one request.

    Attributes:
        config: Settings that a pipeline reads.
        run: The loaded pipeline.
        options: How it was asked for.
        arguments: Options of its requests.
    """

    config: RunConfig
    run: Any
    options: PipelineOptions
    arguments: Mapping[str, Any]

    @property
    def model(self) -> Any:
        """The pipeline brings its own."""
        return None

    @property
    def steps(self) -> int:
        """Those that were asked for."""
        return self.arguments["steps"] or 0

    def count_requests(self, prompts: int) -> int:
        """One each."""
        return prompts

    def make_sampler(
        self,
        method: Method,
        policies: Sequence[Policy],
        callbacks: Sequence[Callback],
        batch_size: int,
    ) -> TextSampler:
        """A sampler of a method in this pipeline."""
        arguments = {**self.arguments, "steps": method.steps or None}
        made: Any = PipelineReplayer(self.run, policies, arguments, callbacks)
        return made  # type: ignore[no-any-return]

    def calibrate(self, name: str, profiler: Profiler) -> Profile:
        """A profile, where the profiler brings its own prompts.

        Raises:
            InputError: It does not; a pipeline has no prompts to calibrate on.
        """
        if not profiler.calibration_prompts:
            raise InputError(
                f"{name} reads a profile; make one from prompts that are not compared, with "
                f"`erta calibrate --pipeline {self.options.pipeline} --policy {name} --prompts "
                "FILE`, and give --profile FILE"
            )
        made: Profile = self.run.calibrate(
            profiler.calibration_prompts,
            profiler,
            callbacks=[ProgressBar()],
            **{**self.arguments, "seed": CALIBRATION_SEED},
        )
        return made

    def solve(self, full: Method, prompts: Sequence[str], seed: int) -> Exact:
        """By the pipeline itself, with many steps for each of its scheduler's."""
        options = {**self.arguments, "seed": seed, "steps": full.steps, "substeps": SUBSTEPS}
        return solve_with(partial(self.run.solve, prompts, **options))

    def describe(self) -> dict[str, str]:
        """Pipeline and the options of its requests."""
        given = {k: v for k, v in self.arguments.items() if v is not None and k != "seed"}
        said = ", ".join(f"{key} {value}" for key, value in given.items()) or "its defaults"
        return {
            "pipeline": f"{type(self.run.pipe).__name__} {self.options.pipeline}",
            "scheduler": type(self.run.pipe.scheduler).__name__,
            "request": said,
            "seam": self.config.seam,
        }


def solve_with(run: Callable[[], Solution]) -> Exact:
    """The exact solution, or why there is none."""
    try:
        found = run()
    except CapabilityError as error:
        return None, f"none, {error}"
    return found.samples, describe_solution(found)


def describe_solution(found: Solution) -> str:
    """How a solution was made, and how exact it is."""
    said = f"{found.substeps} second-order steps for each step of the full run"
    if found.error <= 0:
        return said
    if found.finished is not None:
        return f"{said}; its latents are off by {math.sqrt(found.error):.2g} (root mean square)"
    return f"{said}, itself exact to {10 * math.log10(4 / found.error):.0f} dB"
