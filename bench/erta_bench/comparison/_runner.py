"""Runs contenders that are prepared: policies, plain steps and other projects' caches alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from erta_bench.comparison._contender import Contender
from erta_bench.comparison._fixed_sigmas import OWN_SOLVERS, list_grid, make_scheduler
from erta_bench.comparison._search import is_inside
from erta_bench.comparison._silence import silence
from erta_bench.other_caches import Bridge, bridge, watch_layers
from erta_bench.setting import SUBSTEPS, time_call
from erta_framework import CFG, Policy, Sampler
from erta_framework.calibration import Solution
from erta_framework.errors import CapabilityError
from erta_framework.plugins import flatten
from erta_framework.sampling import Callback, Samples, Solver, TextSampler, resolve_device
from erta_framework.session import Trace
from erta_integrations.diffusers.bundled import InPipeline, PipelineModel, PipelineSampler

BRANCHES = 2
"""Guidance branches of a step."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run.

    Attributes:
        samples: What came out.
        calls: Network calls of each branch a sample; with other caches, runs of the block stack.
        processor: Processor seconds.
        elements: Elements that the layers of the network computed.
        work: Work of each branch a sample in network calls, trials included, by the operations
            that the engine counted; the shares of other projects' caches are not in it.
    """

    samples: Samples
    calls: float
    processor: float
    elements: int
    work: float


@dataclass(frozen=True, slots=True)
class Prepared:
    """A contender with everything filled in for one number of calls.

    Attributes:
        contender: The contender.
        budget: The number of calls; the least work in calls, where it cannot do so little.
        value: The setting that was searched for; None where nothing was.
        policies: Its policies.
        options: Settings of another project's cache.
        sigmas: Where plain steps on a schedule's sigmas start, without the 0 at the end.
        solver: A solver of the own loop instead of the pipeline's scheduler.
    """

    contender: Contender
    budget: float
    value: float | None = None
    policies: tuple[Policy, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    sigmas: tuple[float, ...] = ()
    solver: Solver | None = None

    @property
    def works_inside(self) -> bool:
        """Whether a part of it leaves out places inside the network.

        Its work is then what the engine counts in operations. Elements of layers would flatter it:
        those of a wide layer at low resolution cost far more than those of a narrow one.
        """
        return any(map(is_inside, flatten(self.policies)))


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs contenders on one model, with what all of them share.

    Attributes:
        model: The model; its class says how it runs inside a pipeline.
        steps: Steps of the full run.
        scheduler: Scheduler of all but some plain rows; empty for the model's default.
        guidance_scale: Scale of classifier-free guidance.
        batch_size: Samples a request.
        accelerator: `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.
    """

    model: InPipeline
    steps: int = 50
    scheduler: str = ""
    guidance_scale: float = 3.0
    batch_size: int = 16
    accelerator: str = "auto"

    @property
    def device(self) -> torch.device:
        """Where all contenders run."""
        return resolve_device(self.accelerator, 1)

    @property
    def through(self) -> PipelineModel:
        """How the model runs inside its pipeline."""
        return self.model.pipeline_model()

    @property
    def branches(self) -> int:
        """Guidance branches of a step."""
        return BRANCHES

    @property
    def network(self) -> nn.Module:
        """The denoising network."""
        found: nn.Module = getattr(self.model, self.through.network)
        return found

    @property
    def prediction(self) -> str:
        """What the network predicts."""
        return str(self.model.prediction)

    def make_sampler(
        self,
        policies: Sequence[Policy] = (),
        callbacks: Sequence[Callback] = (),
        *,
        scheduler: str = "",
        **options: Any,
    ) -> TextSampler:
        """A sampler with what all contenders share; `options` are others of `PipelineSampler`."""
        shared: dict[str, Any] = {
            "guidance_scale": self.guidance_scale,
            "batch_size": self.batch_size,
            "accelerator": self.accelerator,
        }
        return self.model.pipeline_sampler(
            policies,
            callbacks,
            scheduler=scheduler or self.scheduler or self.through.default,
            **{**shared, "num_steps": self.steps, **options},
        )

    def make_bridge(self, rival: str, options: dict[str, Any]) -> Callable[[Any], Bridge]:
        """Switches another project's cache on for this model's pipeline."""
        return lambda pipe: bridge(
            pipe, rival, layout=self.through.layout, batched=self.through.batched, **options
        )

    def run(
        self,
        prepared: Prepared,
        prompts: Sequence[str],
        seed: int,
        callbacks: Sequence[Callback] = (),
    ) -> RunResult:
        """Sample prompts, prompt k from the noise of `seed + k`.

        Raises:
            ErtaError: The pipeline cannot serve the contender.
        """
        sampler = self._choose_sampler(prepared, callbacks)
        work = watch_layers([self.network])
        try:
            with silence():
                result, took = time_call(lambda: sampler.sample(self.model, prompts, seed=seed))
        finally:
            work.stop()
        through = sum(trace.network_samples for trace in result.traces)
        calls = through / (self.branches * len(prompts))
        counted = sum(map(count_work, result.traces)) / (self.branches * len(prompts))
        return RunResult(result, calls, took.processor, work.elements, counted)

    def _choose_sampler(self, prepared: Prepared, callbacks: Sequence[Callback]) -> TextSampler:
        """The pipeline, or the own loop for a solver that no pipeline has."""
        contender = prepared.contender
        if prepared.solver is not None:
            steps = contender.steps(prepared.budget, self.steps)
            return self._make_loop(prepared.solver, callbacks=callbacks, num_steps=steps)
        if contender.on is not None:
            return self._sample_on_sigmas(contender.scheduler, prepared.sigmas, callbacks)
        rival = contender.rival
        return self.make_sampler(
            prepared.policies,
            callbacks,
            scheduler=contender.scheduler,
            num_steps=contender.steps(prepared.budget, self.steps),
            seam=contender.seam,
            watched_by=self.make_bridge(rival, prepared.options) if rival else None,
        )

    def _sample_on_sigmas(
        self, solver: str, sigmas: tuple[float, ...], callbacks: Sequence[Callback]
    ) -> TextSampler:
        own = OWN_SOLVERS[self.prediction]
        if solver in own:
            return self._make_loop(own[solver], callbacks=callbacks, sigmas=(*sigmas, 0.0))
        if self.prediction != "velocity":
            raise CapabilityError(
                f"{solver} on given sigmas is for networks that predict a velocity; "
                f"{self.through.name} predicts {self.prediction}"
            )
        given = replace(self.through, schedulers={"given": lambda: make_scheduler(solver, sigmas)})
        return PipelineSampler(
            callbacks=callbacks,
            through=given,
            guidance_scale=self.guidance_scale,
            num_steps=len(sigmas),
            batch_size=self.batch_size,
            accelerator=self.accelerator,
        )

    def _make_loop(
        self,
        solver: Solver,
        policies: Sequence[Policy] = (),
        callbacks: Sequence[Callback] = (),
        **options: Any,
    ) -> Sampler:
        """The own loop with what all contenders share."""
        shared: dict[str, Any] = {
            "guidance": CFG(scale=self.guidance_scale),
            "batch_size": self.batch_size,
            "accelerator": self.accelerator,
        }
        return Sampler(policies, callbacks, solver=solver, **{**shared, **options})

    def list_sigmas(self) -> tuple[float, ...]:
        """Sigmas of the full run, down to 0, as plain solvers take them.

        Raises:
            CapabilityError: The scheduler neither steps from sigma to sigma nor is DDIM.
        """
        full = self.through.make_scheduler(self.scheduler)
        return list_grid(full, self.prediction, self.steps)

    def solve(self, prompts: Sequence[str], seed: int, substeps: int = SUBSTEPS) -> Solution:
        """The nearly exact solution of prompts, prompt k from the noise of `seed + k`."""
        return self.make_sampler().solve(self.model, prompts, seed=seed, substeps=substeps)


def count_work(trace: Trace) -> float:
    """Work of the network calls and of the trials, which may be on smaller latents, in samples."""
    if not trace.trial_calls:
        return trace.work
    return trace.work + trace.trial_samples * trace.trial_share / trace.trial_calls
