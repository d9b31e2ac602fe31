"""`LoadedPipeline`: calibrates, samples and solves a pipeline, one prompt at a time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from erta_framework import Policy, Profile, Profiler, Samples, Seam
from erta_framework.calibration import (
    NetworkMemory,
    Solution,
    calibrate,
    describe_run,
    describe_samples,
    makes_more_runs,
)
from erta_framework.plugins import PipelineFacts
from erta_framework.sampling import Callback, LatentRecorder, Observers
from erta_integrations.diffusers._attach import attach
from erta_integrations.diffusers._automatic import describe_pipeline
from erta_integrations.diffusers._requests import RequestCaller, as_sample, require_prompts
from erta_integrations.diffusers._step_teller import StepTeller
from erta_integrations.diffusers.finer import solve_pipeline
from erta_integrations.diffusers.modules import PlaceGroup, inspect_places
from erta_integrations.diffusers.network import find_networks


class LoadedPipeline:
    """A loaded pipeline, to be calibrated or sampled one prompt at a time.

    Attributes:
        pipe: The diffusers pipeline.
        source: Name of its folder, or its hub id.
        seam: What a reused step leaves out, `"latent"` or `"trunk"`.
        memory: The most that places inside the networks may keep in a request; None: no bound.
    """

    def __init__(
        self,
        pipe: Any,
        source: str,
        seam: str = Seam.LATENT,
        memory: str | int | None = None,
    ) -> None:
        self.pipe = pipe
        self.source = source
        self.seam = seam
        self.memory = memory

    def calibrate(
        self,
        prompts: Sequence[str],
        profiler: Policy,
        *,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        **options: Any,
    ) -> Profile:
        """Run the full network on calibration prompts and merge what the profiler emits.

        Args:
            prompts: One per request.
            profiler: Such as `ResidualProfiler()`.
            seed: The noise of prompt k is drawn from `seed + k`.
            callbacks: Observers, such as `ProgressBar()`; they see no finished samples.
            options: `steps`, `guidance`, `height`, `width`, `frames`; None keeps the
                pipeline's default.

        Raises:
            InputError: No prompts, or an option that this pipeline does not have.
            PolicyError: The profiler emitted nothing.
        """
        caller = self._make_caller(prompts, options)
        start = caller.describe_start(len(prompts), "calibrating")
        memory = NetworkMemory()

        def run(current: Profiler) -> Sequence[Profile]:
            memory.begin(keep=False)
            attached = attach(self.pipe, [current], seam=self.seam)
            with Observers(tuple(callbacks), start) as observers, attached:
                for number, prompt in enumerate(prompts):
                    attached.prompts = [prompt]
                    copies = current.calibration_copies
                    clock = time.perf_counter()
                    told = StepTeller(attached, observers)
                    caller.call(prompt, seed + number, "latent", told, copies)
                    nothing, took = torch.empty(1, 0), time.perf_counter() - clock
                    told.finish(prompt, seed + number, nothing, took)
            return attached.emitted

        def solve(substeps: int) -> Solution:
            memory.begin(keep=False)

            def request(number: int) -> Any:
                return caller.call(prompts[number], seed + number, "latent")

            parts = range(len(prompts))
            return Solution.merge(
                [solve_pipeline(self.pipe, partial(request, part), substeps) for part in parts]
            )

        def sample(policies: Sequence[Policy], *, keep: bool = False) -> Tensor:
            memory.begin(keep)
            recorder = LatentRecorder(into=[])
            with attach(self.pipe, [*policies, recorder], seam=self.seam):
                for number, prompt in enumerate(prompts):
                    caller.call(prompt, seed + number, "latent")
            return torch.cat(recorder.into)

        watched = find_networks(self.pipe, None).values() if makes_more_runs(profiler) else ()
        with memory.watch(*watched):
            profile = calibrate(profiler, run, solve, sample, memory)
        return profile.with_provenance(
            pipeline=f"{type(self.pipe).__name__} {self.source}",
            **describe_samples(prompts, seed),
            **describe_run(self.pipe.device),
        )

    def sample(
        self,
        prompts: Sequence[str],
        policies: Sequence[Policy],
        *,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        **options: Any,
    ) -> Samples:
        """Sample one output per prompt: images `[C, H, W]` or videos `[C, F, H, W]` in [-1, 1].

        Args:
            prompts: One per request.
            policies: In call order; without any, every step is computed.
            seed: The noise of prompt k is drawn from `seed + k`.
            callbacks: Observers, such as `ProgressBar()`.
            options: As for `calibrate`.

        Raises:
            InputError: No prompts, an option that this pipeline does not have, or one of a value
                that it refuses.
            NonFiniteError: A reused output was NaN or infinite.
        """
        caller = self._make_caller(prompts, options)
        start = caller.describe_start(len(prompts), "sampling")
        samples: list[Tensor] = []
        seconds = 0.0
        run = attach(
            self.pipe, list(policies), seam=self.seam, keep_traces=None, memory=self.memory
        )
        with Observers(tuple(callbacks), start) as observers, run:
            for number, prompt in enumerate(prompts):
                clock = time.perf_counter()
                told = StepTeller(run, observers)
                output = caller.call(prompt, seed + number, "pt", told)
                samples.append(as_sample(output, type(self.pipe).__name__))
                took = time.perf_counter() - clock
                told.finish(prompt, seed + number, samples[-1].unsqueeze(0), took)
                seconds += took
        return Samples(
            samples=torch.stack(samples),
            prompts=tuple(prompts),
            seeds=tuple(range(seed, seed + len(prompts))),
            traces=tuple(run.traces),
            seconds=seconds,
            emitted=tuple(run.emitted),
        )

    def solve(
        self, prompts: Sequence[str], *, seed: int = 0, substeps: int = 8, **options: Any
    ) -> Solution:
        """The nearly exact solution of what this samples, through the same pipeline.

        Args:
            prompts: One per request.
            seed: The noise of prompt k is drawn from `seed + k`.
            substeps: Steps for each step of the schedule; even.
            options: As for `calibrate`.

        Raises:
            CapabilityError: What the scheduler integrates is not known, or cannot be divided.
            InputError: No prompts, or an option that this pipeline does not have.
        """
        caller, name = self._make_caller(prompts, options), type(self.pipe).__name__
        found = []
        for number, prompt in enumerate(prompts):
            request = partial(caller.call, prompt, seed + number, "pt")
            found.append(
                solve_pipeline(
                    self.pipe, request, substeps, lambda output: as_sample(output, name)[None]
                )
            )
        return Solution.merge(found)

    def describe(self, steps: int | None = None, seam: str | None = None) -> PipelineFacts:
        """What is known of the pipeline, for whoever chooses its policies.

        Args:
            steps: Of a request; None for the pipeline's own number.
            seam: The seam that was asked for; None leaves it open.

        Raises:
            CapabilityError: It has no denoising network.
        """
        facts = describe_pipeline(self.pipe, None, seam)
        return facts if steps is None else replace(facts, num_steps=steps)

    def inspect_places(self, prompt: str, *, seed: int = 0, **options: Any) -> list[PlaceGroup]:
        """Find the places of the networks, and measure what they cost in one request.

        Args:
            prompt: Of the request.
            seed: Of its noise.
            options: As for `calibrate`; `steps` is 1 where it is not given.

        Raises:
            CapabilityError: A network has no places, or did not run in this request.
            InputError: An option that this pipeline does not have.
        """
        caller = RequestCaller.read(self.pipe, {**options, "steps": options.get("steps") or 1})
        generator = torch.Generator().manual_seed(seed)
        return inspect_places(
            self.pipe, prompt=prompt, generator=generator, output_type="latent", **caller.arguments
        )

    def _make_caller(self, prompts: Sequence[str], options: Mapping[str, Any]) -> RequestCaller:
        require_prompts(prompts)
        return RequestCaller.read(self.pipe, options)
