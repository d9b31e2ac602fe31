"""`PipelineSampler`: samples and calibrates a bundled model through its unmodified pipeline.

Over 250 lines because it is documented for users here, as `Sampler` is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import diffusers
import torch
from torch import Tensor

from erta_framework import Engine, Policy, Profile, Samples, Seam, Trace
from erta_framework.attach import Attached
from erta_framework.calibration import (
    NetworkMemory,
    Solution,
    calibrate,
    describe_run,
    describe_samples,
    find_profiler,
    makes_more_runs,
)
from erta_framework.errors import InputError
from erta_framework.modules import MODULES
from erta_framework.sampling import (
    BatchEnd,
    CalibrationRuns,
    Callback,
    Observers,
    RunStart,
    TextModel,
    resolve_device,
)
from erta_framework.session import PLANNED, RESIZED, TEXT, TRIAL, TWO_BRANCHES
from erta_integrations.diffusers import Attachment, attach
from erta_integrations.diffusers.bundled._pipeline_model import (
    BundledModel,
    PipelineModel,
    pipeline,
    request,
)
from erta_integrations.diffusers.finer import solve_pipeline
from erta_integrations.diffusers.pipeline import capabilities, find_level_capabilities


class PipelineSampler:
    """Does what `Sampler` does, through the unmodified pipeline of a bundled model.

    Args:
        policies: In call order; without any, every step is computed.
        callbacks: Observers, such as `ProgressBar()`.
        through: How models of one class run inside a pipeline.
        scheduler: One of the names in its `schedulers`; None is the default.
        guidance_scale: Scale of classifier-free guidance.
        num_steps: Steps of a request.
        accelerator: `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.
        batch_size: Samples per request.
        seam: What a reused step leaves out, `"latent"` or `"trunk"`.
        memory: The most that places inside the network may keep in a request, such as `"2GiB"`.
        watched_by: Makes what is attached instead of the policies, from the pipeline, such as
            `lambda pipe: bridge(pipe, "FirstBlockCache")`.

    Raises:
        CapabilityError: A policy needs something that the scheduler cannot do.
        InputError: The scheduler is unknown, or a number is too small.

    Example:
        >>> sampler = PipelineSampler(through=WAN, scheduler="unipc")  # doctest: +SKIP
        >>> result = sampler.sample(model, ["a red circle moving left"])  # doctest: +SKIP
    """

    def __init__(
        self,
        policies: Sequence[Policy] = (),
        callbacks: Sequence[Callback] = (),
        *,
        through: PipelineModel,
        scheduler: str | None = None,
        guidance_scale: float = 3.0,
        num_steps: int = 50,
        accelerator: str = "auto",
        batch_size: int = 16,
        seam: str = Seam.LATENT,
        memory: str | int | None = None,
        watched_by: Callable[[Any], Attached] | None = None,
    ) -> None:
        for name, value in {"num_steps": num_steps, "batch_size": batch_size}.items():
            if value < 1:
                raise InputError(f"{name} is {value}, it must be at least 1")
        self.policies = tuple(policies)
        self.engine = Engine(self.policies)
        self.callbacks = tuple(callbacks)
        self.through = through
        self.scheduler = through.default if scheduler is None else scheduler
        self.guidance_scale = guidance_scale
        self.num_steps = num_steps
        self.device = resolve_device(accelerator, devices=1)
        self.batch_size = batch_size
        self.seam = Seam(seam)
        self.memory = memory
        self._watched_by = watched_by
        made = through.make_scheduler(scheduler)
        # signals of blocks, places and branches are checked when the model is attached
        inside = self.engine.signals | {MODULES, TWO_BRANCHES}
        if self.seam is Seam.LATENT:
            inside = TEXT | {TRIAL, RESIZED, PLANNED, MODULES, TWO_BRANCHES}
        offered = capabilities(made) | find_level_capabilities(made) | inside
        self.engine.check(offered, type(made).__name__, self.seam)
        self._class = type(made).__name__

    @property
    def facts(self) -> dict[str, str]:
        """Loop, scheduler and guidance, in words for a report."""
        return {
            "loop": f"{self.through.pipeline} of diffusers {diffusers.__version__}, unmodified",
            "scheduler": f"{self._class}, {self.through.grid}",
            "guidance": f"{self.through.guidance} {self.guidance_scale:g}",
        }

    def sample(
        self,
        model: TextModel,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        title: str = "sampling",
    ) -> Samples:
        """Sample one video or image per prompt.

        Args:
            model: A model of the class that `through` describes.
            prompts: One per sample.
            seed: The noise of sample k is drawn from `seed + k`, as with `Sampler`.
            seeds: One seed per sample, instead of `seed`.
            title: Shown by the progress bar.

        Raises:
            InputError: No prompts, or another model.
            NonFiniteError: A reused output was NaN or infinite.
        """
        names, numbers, placed = self._place(model, prompts, seeds, seed)
        pipe = pipeline(placed, self.scheduler, self.through)
        starts = range(0, len(names), self.batch_size)
        start = RunStart(len(names), len(starts), self.num_steps, title)
        done: list[BatchEnd] = []
        with Observers(self.callbacks, start) as observers, self._attached(pipe) as run:

            def report_step(
                _: Any, index: int, time: Tensor, tensors: dict[str, Any]
            ) -> dict[str, Any]:
                observers.step(get_trace(run).steps[-1])
                return {}

            for begin in starts:
                chosen = slice(begin, begin + self.batch_size)
                batch = self._sample_batch(
                    pipe, run, placed, names[chosen], numbers[chosen], report_step
                )
                done.append(batch)
                # callbacks get copies, so that they cannot change the result
                samples, trace = batch.samples.clone(), deepcopy(batch.trace)
                observers.batch(replace(batch, samples=samples, trace=trace))
        return Samples(
            samples=torch.cat([batch.samples for batch in done]),
            prompts=names,
            seeds=numbers,
            traces=tuple(batch.trace for batch in done),
            seconds=sum(batch.seconds for batch in done),
            emitted=tuple(run.emitted),
        )

    def solve(
        self, model: TextModel, prompts: Sequence[str], *, seed: int = 0, substeps: int = 8
    ) -> Solution:
        """The nearly exact solution of what this samples, through the same pipeline.

        Args:
            model: A model of the class that `through` describes.
            prompts: One per sample.
            seed: The noise of sample k is drawn from `seed + k`.
            substeps: Steps for each step of the schedule; even.

        Returns:
            Latents in the pipeline's layout, and `samples` in that of `sample`.

        Raises:
            CapabilityError: What the scheduler integrates is not known, or cannot be divided.
            InputError: No prompts, another model, or `substeps` is not even.
        """
        names, numbers, placed = self._place(model, prompts, None, seed)
        pipe, found = pipeline(placed, self.scheduler, self.through), []
        for begin in range(0, len(names), self.batch_size):
            chosen = slice(begin, begin + self.batch_size)

            def run(chosen: slice = chosen) -> Any:
                return pipe(**self._request(placed, names[chosen], numbers[chosen]))

            found.append(solve_pipeline(pipe, run, substeps, self.through.samples))
        return Solution.merge(found)

    def calibrate(
        self,
        model: TextModel,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        profiler: Policy | None = None,
    ) -> Profile:
        """Run the full network on calibration prompts and merge what the profiler emits.

        Args:
            model: A model of the class that `through` describes.
            prompts: Calibration prompts; do not test on the same ones.
            seed: The noise of sample k is drawn from `seed + k`.
            profiler: The profiler; by default the one that this sampler's policies ask for.

        Raises:
            PolicyError: No policy asks for a profiler and none was given, or it emitted nothing.
        """
        _, _, placed = self._place(model, prompts, None, seed)
        memory, network = NetworkMemory(), getattr(placed, self.through.network)
        runs = CalibrationRuns(self, model, prompts, seed, memory)
        chosen = find_profiler(self.policies, profiler)
        with memory.watch(*([network] if makes_more_runs(chosen) else ())):
            profile = calibrate(chosen, runs.run, runs.solve, runs.sample, memory)
        return profile.with_provenance(
            **describe_samples(prompts, seed),
            **describe_run(self.device),
            diffusers=diffusers.__version__,
            weights=model.fingerprint()["weights"],
        )

    def with_policies(self, policies: Sequence[Policy]) -> PipelineSampler:
        """The same run in everything but its policies, and what is attached instead of them.

        Raises:
            CapabilityError: A policy needs something that the scheduler cannot do.
        """
        return PipelineSampler(
            policies,
            self.callbacks,
            through=self.through,
            scheduler=self.scheduler,
            guidance_scale=self.guidance_scale,
            num_steps=self.num_steps,
            accelerator=self.device.type,
            batch_size=self.batch_size,
            seam=self.seam,
            memory=self.memory,
        )

    def _place(
        self,
        model: TextModel,
        prompts: Sequence[str],
        seeds: Sequence[int] | None,
        seed: int,
    ) -> tuple[tuple[str, ...], tuple[int, ...], BundledModel]:
        """Prompts, a seed for each, and the model on the device."""
        if isinstance(prompts, str) or not prompts:
            raise InputError(f"prompts is {prompts!r}; give a list with at least one prompt")
        if not isinstance(model, self.through.kind):
            kind = self.through.kind.__name__
            raise InputError(f"the model is {type(model).__name__}; this pipeline runs {kind}")
        names = tuple(prompts)
        numbers = tuple(seeds) if seeds is not None else tuple(range(seed, seed + len(names)))
        if len(numbers) != len(names):
            raise InputError(f"{len(numbers)} seeds for {len(names)} prompts; give one a prompt")
        placed = cast(BundledModel, model.to(self.device))  # as `kind` of the description
        return names, numbers, placed

    def _request(
        self, model: BundledModel, prompts: tuple[str, ...], seeds: tuple[int, ...]
    ) -> dict[str, Any]:
        return request(
            model,
            prompts,
            seeds=seeds,
            num_steps=self.num_steps,
            guidance_scale=self.guidance_scale,
        )

    def _sample_batch(
        self,
        pipe: Any,
        run: Attachment | Attached,
        model: BundledModel,
        prompts: tuple[str, ...],
        seeds: tuple[int, ...],
        report_step: Callable[..., dict[str, Any]],
    ) -> BatchEnd:
        """Make one request; the seconds are those of the pipeline, with the copy to the CPU."""
        if isinstance(run, Attachment):
            run.prompts = prompts
        clock = time.perf_counter()
        arguments = self._request(model, prompts, seeds)
        output = pipe(**arguments, callback_on_step_end=report_step)
        samples = self.through.samples(output).cpu()
        seconds = time.perf_counter() - clock
        trace = get_trace(run)
        trace.raise_if_nonfinite()
        return BatchEnd(prompts, seeds, samples, trace, seconds)

    def _attached(self, pipe: Any) -> Attachment | Attached:
        if self._watched_by is not None:
            return self._watched_by(pipe)
        return attach(pipe, self.engine, seam=self.seam, memory=self.memory)


def get_trace(run: Attachment | Attached) -> Trace:
    """The trace of the request that is running or has just run."""
    assert run.newest is not None
    return run.newest
