"""Runs contenders on the pipeline: policies, plain steps and other caches through one sampler."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from erta_bench.comparison.budget import Solver, planned_calls
from erta_bench.comparison.contender import (
    BUDGET,
    PARTS,
    RATIOS,
    SOLVED,
    Contender,
    MadeBy,
    Spec,
    filled,
)
from erta_bench.comparison.fixed_sigmas import on_sigmas
from erta_bench.comparison.memory import Weigher, only_new
from erta_bench.core.ablation import CALIBRATION_SEEDS
from erta_bench.other_caches import Bridge, bridge
from erta_bench.other_caches.work import watched
from erta_framework import CFG, Policy, Profile, Sampler
from erta_framework.budgets import forecast
from erta_framework.config import build_policies
from erta_framework.errors import CapabilityError
from erta_framework.sampling import Callback, FlowAdamsBashforth2, Samples, TextSampler
from erta_integrations.diffusers.bundled import InPipeline, PipelineModel, PipelineSampler
from erta_integrations.diffusers.pipeline import capabilities

BRANCHES = 2
"""Guidance branches of a step."""
FITTED_PROFILER = "fitted_profiler"
RUNS = {"sensitivity_profiler": 2, FITTED_PROFILER: 4}
"""Network calls of a calibration sample at a step, where they are not one: trials and copies."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Other projects' caches log when they are switched on; what they do is counted anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@dataclass(frozen=True, slots=True)
class Ran:
    """One run.

    Attributes:
        samples: What came out.
        calls: Network calls of each branch a sample; with other caches, runs of the block stack.
        processor: Processor seconds.
        elements: What the layers of the network computed.
    """

    samples: Samples
    calls: float
    processor: float
    elements: int


@dataclass(frozen=True, slots=True)
class Ready:
    """A contender with everything filled in for one number of calls.

    Attributes:
        contender: The contender.
        budget: The number of calls.
        value: What was solved for; None where nothing was.
        policies: Its policies.
        options: Settings of another project's cache.
        sigmas: Where plain steps on a schedule's sigmas start, without the 0 at the end.
    """

    contender: Contender
    budget: int
    value: float | None
    policies: tuple[Policy, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    sigmas: tuple[float, ...] = ()


@dataclass(slots=True)
class Track:
    """What all contenders share.

    Attributes:
        model: The model; its class says how it runs inside a pipeline.
        calibration: Prompts to calibrate and to solve settings on.
        solving: How many of them a search runs.
        steps: Steps of the full run.
        scheduler: Scheduler of all but some plain rows; empty for the model's default.
        guidance_scale: Scale of classifier-free guidance.
        batch_size: Samples a request.
        profiles: Profiles by who made them and at which seam.
        solvers: What was tried for each contender with something to solve.
        solving_calls: Network calls of each branch, over all samples, that solving took.
    """

    model: InPipeline
    calibration: Sequence[str]
    solving: int = 2
    steps: int = 50
    scheduler: str = ""
    guidance_scale: float = 3.0
    batch_size: int = 16
    profiles: dict[tuple[MadeBy, str, int | None], Profile] = field(default_factory=dict)
    solvers: dict[str, Solver] = field(default_factory=dict)
    solving_calls: dict[str, float] = field(default_factory=dict)
    _ratios: list[float] | None = None
    _full: int = 0
    _floor: dict[int, int] = field(default_factory=dict)
    _held: dict[str, int] = field(default_factory=dict)

    @property
    def through(self) -> PipelineModel:
        """How the model runs inside its pipeline."""
        return self.model.pipeline_model()

    @property
    def network(self) -> nn.Module:
        """The denoising network."""
        found: nn.Module = getattr(self.model, self.through.network)
        return found

    def sampler(
        self,
        policies: Sequence[Policy] = (),
        callbacks: Sequence[Callback] = (),
        *,
        scheduler: str = "",
        **options: Any,
    ) -> PipelineSampler:
        """A sampler with what all contenders share; `options` are others of `PipelineSampler`."""
        shared = {"guidance_scale": self.guidance_scale, "batch_size": self.batch_size}
        return self.model.pipeline_sampler(
            policies,
            callbacks,
            scheduler=scheduler or self.scheduler or self.through.default,
            **{**shared, "num_steps": self.steps, **options},
        )

    def bridged(self, rival: str, options: dict[str, Any]) -> Callable[[Any], Bridge]:
        """Switches another project's cache on for this model's pipeline."""
        return lambda pipe: bridge(
            pipe, rival, layout=self.through.layout, batched=self.through.batched, **options
        )

    # ------------------------------------------------------------------ making ready
    def ready(self, contender: Contender, budget: int) -> Ready:
        """Calibrate what is not calibrated yet, and solve for the number of calls."""
        if contender.search is None:
            return self._with(contender, budget, None)
        if contender.name not in self.solvers:
            self.solving_calls[contender.name] = 0.0
            self.solvers[contender.name] = Solver(
                contender.search, lambda value: self._calls(contender, value)
            )
        return self._with(contender, budget, self.solvers[contender.name].value(budget))

    def calibration_calls(self, ready: Ready) -> int:
        """Network calls of each branch, over all samples, that calibrating took."""
        contender = ready.contender
        held = [k for k in self.profiles if self._uses(ready, k)]
        own = self.steps if RATIOS in contender.options.values() else 0
        for key in held:
            made = key[0]
            own += len(self.calibration) * RUNS.get(made.profiler, 1) * (made.steps or self.steps)
        return own

    def _uses(self, ready: Ready, key: tuple[MadeBy, str, int | None]) -> bool:
        made, seam, budget = key
        found: list[Any] = []
        filled(ready.contender.policies, found.append)
        for other in [one for one in found if isinstance(one, MadeBy)]:
            filled(other.options, found.append)
        where = made.seam or ready.contender.seam
        return made in found and seam == where and budget in (None, ready.budget)

    def oracle(self, contender: Contender, budget: int, prompts: Sequence[str], seed: int) -> Ready:
        """A contender whose fitted weights are made on the very samples that are measured."""

        def seen(made: MadeBy, options: dict[str, Any]) -> Profile:
            if made.profiler != FITTED_PROFILER:
                return self._profile(made, contender.seam, budget, options)
            return self._calibrated(made, contender.seam, options, prompts, seed)

        return self._with(contender, budget, None, seen)

    def _with(
        self,
        contender: Contender,
        budget: int,
        value: float | None,
        profile: Callable[[MadeBy, dict[str, Any]], Profile] | None = None,
    ) -> Ready:
        profile_of = profile or (
            lambda made, options: self._profile(made, contender.seam, budget, options)
        )

        def stands(what: Any) -> Any:
            if isinstance(what, MadeBy):
                return profile_of(what, filled(dict(what.options), stands))
            if what is RATIOS:
                return self._mag()
            return {BUDGET: budget, SOLVED: value, PARTS: list(self.through.parts)}[what]

        policies = build_policies(list(filled(contender.policies, stands)))
        options = filled(dict(contender.options), stands)
        sigmas = () if contender.on is None else self._sigmas(filled(contender.on, stands))
        return Ready(contender, budget, value, tuple(policies), options, sigmas)

    def _sigmas(self, on: Spec) -> tuple[float, ...]:
        """Sigmas of the full run's grid at which a schedule computes.

        Raises:
            CapabilityError: The scheduler does not step from sigma to sigma.
        """
        full = self.through.make_scheduler(self.scheduler)
        if "first_order" not in capabilities(full):
            raise CapabilityError(
                f"{type(full).__name__} does not step from sigma to sigma; plain steps on given "
                "sigmas need FlowMatchEulerDiscreteScheduler"
            )
        (schedule,) = build_policies([on])
        full.set_timesteps(self.steps)
        grid = full.sigmas.tolist()
        return tuple(grid[step] for step in forecast([schedule], self.steps).computed)

    def _profile(self, made: MadeBy, whose: str, budget: int, options: dict[str, Any]) -> Profile:
        seam = made.seam or whose
        key = made, seam, budget if made.budgeted else None
        if key not in self.profiles:
            self.profiles[key] = self._calibrated(
                made, seam, options, self.calibration, CALIBRATION_SEEDS
            )
        return self.profiles[key]

    def _calibrated(
        self, made: MadeBy, seam: str, options: dict[str, Any], prompts: Sequence[str], seed: int
    ) -> Profile:
        (profiler,) = build_policies([{made.profiler: options}])
        # weights that are fitted to several batches have not been judged together
        batch = len(prompts) if made.profiler == FITTED_PROFILER else self.batch_size
        sampler = self.sampler(num_steps=made.steps or self.steps, batch_size=batch, seam=seam)
        return sampler.calibrate(self.model, prompts, seed=seed, profiler=profiler)

    def _mag(self) -> list[float]:
        """The ratios that diffusers' own calibration prints, of the first branch; one prompt."""
        if self._ratios is None:
            options: dict[str, Any] = {"calibrate": True, "num_inference_steps": self.steps}
            sampler = self.sampler(watched_by=self.bridged("MagCache", options))
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                sampler.sample(self.model, self.calibration[:1], seed=CALIBRATION_SEEDS)
            lines = [line for line in printed.getvalue().splitlines() if line.startswith("[1.0")]
            self._ratios = [float(ratio) for ratio in json.loads(lines[0])]
        return self._ratios

    def _calls(self, contender: Contender, value: float) -> float:
        """Calls at a value, planned where that is possible and else counted in a short run."""
        ready = self._with(contender, 0, value)
        planned = planned_calls(ready.policies, self.steps) if ready.policies else None
        if planned is not None:
            return planned
        prompts = self.calibration[: self.solving]
        ran = self.run(ready, prompts, CALIBRATION_SEEDS)
        self.solving_calls[contender.name] += ran.calls * len(prompts)
        if not contender.parts:
            return ran.calls
        if not self._full:
            plain = self._with(Contender(name="full", group="plain"), self.steps, None)
            self._full = self.run(plain, prompts, CALIBRATION_SEEDS).elements
        return self.steps * ran.elements / self._full

    # ------------------------------------------------------------------ running
    def run(
        self, ready: Ready, prompts: Sequence[str], seed: int, callbacks: Sequence[Callback] = ()
    ) -> Ran:
        """Sample prompts.

        Raises:
            ErtaError: The pipeline cannot serve the contender.
        """
        sampler = self._running(ready, callbacks)
        work = watched([self.network])
        try:
            with quiet():
                start = time.process_time()
                result = sampler.sample(self.model, prompts, seed=seed)
                processor = time.process_time() - start
        finally:
            work.stop()
        through = sum(trace.network_samples for trace in result.traces)
        return Ran(result, through / (BRANCHES * len(prompts)), processor, work.elements)

    def _running(self, ready: Ready, callbacks: Sequence[Callback]) -> TextSampler:
        """What samples a row: the pipeline, or the own loop for a solver that no pipeline has."""
        contender = ready.contender
        if contender.on is not None:
            return self._on_sigmas(contender.scheduler, ready.sigmas, callbacks)
        rival = contender.rival
        return self.sampler(
            ready.policies,
            callbacks,
            scheduler=contender.scheduler,
            num_steps=contender.steps(ready.budget, self.steps),
            seam=contender.seam,
            watched_by=self.bridged(rival, ready.options) if rival else None,
        )

    def _on_sigmas(
        self, solver: str, sigmas: tuple[float, ...], callbacks: Sequence[Callback]
    ) -> TextSampler:
        if solver == "ab2":
            return Sampler(
                callbacks=callbacks,
                solver=FlowAdamsBashforth2(),
                guidance=CFG(scale=self.guidance_scale),
                sigmas=(*sigmas, 0.0),
                batch_size=self.batch_size,
            )
        given = replace(self.through, schedulers={"given": lambda: on_sigmas(solver, sigmas)})
        return PipelineSampler(
            callbacks=callbacks,
            through=given,
            guidance_scale=self.guidance_scale,
            num_steps=len(sigmas),
            batch_size=self.batch_size,
        )

    def bytes_held(self, ready: Ready) -> int:
        """Bytes a sample that are held between steps beyond those of as many plain steps.

        Measured once a contender: how many calls it makes does not change what it holds.
        """
        name = ready.contender.name
        if name in self._held:
            return self._held[name]
        steps = ready.contender.steps(ready.budget, self.steps)
        if steps not in self._floor:
            first = Contender(name="plain", group="plain", scheduler=self.through.default)
            self._floor[steps] = self._grown(self._with(first, steps, None), steps)
        self._held[name] = self._grown(ready, steps) - self._floor[steps]
        return self._held[name]

    def _grown(self, ready: Ready, steps: int) -> int:
        """Bytes that a run of one prompt made and that are alive within it."""
        weigher = Weigher(steps)
        with only_new():
            self.run(ready, self.calibration[:1], CALIBRATION_SEEDS, [weigher])
        return weigher.most
