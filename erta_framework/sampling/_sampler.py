"""`Sampler`: the front door. A thin facade over `Engine` and `SamplingLoop`.

Over 250 lines because it is documented for users here: half of it is the docstrings of its methods.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from erta_framework.calibration import (
    NetworkMemory,
    Profile,
    Solution,
    calibrate,
    describe_quantized,
    describe_run,
    describe_samples,
    find_profiler,
)
from erta_framework.errors import CapabilityError, InputError
from erta_framework.jobs import (
    LAUNCHER,
    CalibrationRequest,
    FabricConfig,
    JobConfig,
    JobRequest,
    Summary,
    load_launcher,
)
from erta_framework.plugins import Engine, Policy
from erta_framework.sampling._budgets import choose_for_budget
from erta_framework.sampling._calibration_runs import CalibrationRuns, LoopSamples, watch_model
from erta_framework.sampling._callbacks import BatchEnd, Callback, Observers, RunStart
from erta_framework.sampling._device import autocast, check_precision, resolve_device
from erta_framework.sampling._inputs import (
    as_prompts,
    as_seeds,
    check_latents,
    check_start,
    make_noise,
    require_prediction,
)
from erta_framework.sampling._loop import Request, SamplingLoop
from erta_framework.sampling._samples import Samples
from erta_framework.sampling._solve import solve
from erta_framework.sampling._text_model import TextModel
from erta_framework.sampling._unused import warn_unused
from erta_framework.sampling._workers import open_worker, use_one_device
from erta_framework.sampling.guidance import CFG, Guidance
from erta_framework.sampling.solvers import FlowEuler, Schedule, Solver


class Sampler:
    """Samples prompts with any `TextModel` under a list of policies.

    Args:
        policies: In call order; empty computes every step.
        callbacks: Observers, such as `ProgressBar()`.
        solver: How the trajectory is integrated; `FlowEuler()` by default.
        guidance: How branches combine; `CFG(scale=3.0)` by default.
        num_steps: Steps of the nominal schedule.
        sigmas: Own sigma list instead of `num_steps`.
        precision: `"32"`, or `"bf16-mixed"` / `"16-mixed"` for autocast.
        accelerator: `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.
        devices: Devices of this machine; more than one, or a strategy, samples through `sample_job`
            and Lightning Fabric.
        batch_size: Samples a batch.
        strategy: How Fabric starts the processes, such as `"ddp"`.
        num_nodes: Machines.
        memory: The most that places inside the network may keep in a batch, such as `"2GiB"`.
        launcher: Who runs `sample_job`: `"fabric"`, or another installed launcher such as `"ray"`.
        budget: One of `calls`, `speedup`, `psnr`, `seconds`, `work` and `quality`, such as
            `speedup=2`: for the first policy that takes one. Without policies, some that need no
            profile are chosen.

    Raises:
        CapabilityError: An unknown accelerator, number of devices or precision, or a policy that
            needs something the solver cannot do.
        PolicyError: No policy takes the budget.

    Example:
        >>> sampler = Sampler(num_steps=50, guidance=CFG(scale=3.0))
        >>> result = sampler.sample(model, ["a red circle moving left"])  # doctest: +SKIP
    """

    def __init__(
        self,
        policies: Sequence[Policy] = (),
        callbacks: Sequence[Callback] = (),
        *,
        solver: Solver | None = None,
        guidance: Guidance | None = None,
        num_steps: int = 50,
        sigmas: Sequence[float] | None = None,
        precision: str = "32",
        accelerator: str = "auto",
        devices: int | str = 1,
        batch_size: int = 16,
        strategy: str | None = None,
        num_nodes: int | None = None,
        memory: str | int | None = None,
        launcher: str = LAUNCHER,
        **budget: Any,
    ) -> None:
        self.callbacks = tuple(callbacks)
        self.solver: Solver = solver if solver is not None else FlowEuler()
        self.guidance: Guidance = guidance if guidance is not None else CFG(scale=3.0)
        self.schedule: Schedule = self.solver.schedule(num_steps, sigmas)
        self.policies = choose_for_budget(policies, budget, self.schedule.num_steps)
        self.fabric = FabricConfig(
            accelerator=None if accelerator == "auto" else accelerator,
            devices=None if devices == 1 else devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=None if precision == "32" else precision,
        )
        self.launcher = launcher
        # each of several processes has one device; which, the launcher says when it starts them.
        # The workers of other launchers than Fabric may run where there are other accelerators
        self.device = resolve_device(
            accelerator if launcher == LAUNCHER else "auto",
            1 if self._is_launched and devices else devices,
        )
        check_precision(precision)
        self.precision = precision
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, it must be at least 1")
        self.batch_size = batch_size
        self.loop = SamplingLoop(Engine(self.policies), self.solver, self.guidance, memory)

    @property
    def _is_launched(self) -> bool:
        """Whether a launcher runs this sampler, not the process that made it."""
        return self.fabric.is_distributed or self.launcher != LAUNCHER

    @property
    def facts(self) -> dict[str, str]:
        """Loop, solver and guidance, in words for a report."""
        return {
            "loop": type(self.loop).__name__,
            "solver": repr(self.solver),
            "guidance": f"{self.guidance!r}, {len(self.guidance.names)} branches",
        }

    def sample(
        self,
        model: TextModel,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        latents: Tensor | None = None,
        init: Tensor | None = None,
        first: int = 0,
        title: str = "sampling",
    ) -> Samples:
        """Sample one output per prompt.

        Args:
            model: Encodes the prompts and predicts.
            prompts: One a sample.
            seed: Sample k draws its noise from `seed + k`.
            seeds: A seed for each sample, instead of `seed`.
            latents: Starting noise `[N, C, ...]` instead of seeds.
            init: Clean samples `[N, C, ...]` to start from (img2img), noised to step `first`.
            first: Index of the first step that runs.
            title: Shown by the progress bar.

        Raises:
            CapabilityError: The solver does not integrate what the model predicts.
            InputError: No prompts, or inputs whose number, shape or values do not fit.
            NonFiniteError: A reused output was NaN or infinite.
        """
        require_prediction(model, self.solver)
        if self._is_launched:
            raise CapabilityError(
                f"this sampler has several devices ({self.fabric}, launcher {self.launcher!r}), "
                "whose samples go to a folder; use sample_job(model, prompts, folder), or devices=1"
                + f" and launcher={LAUNCHER!r}"
                * (self.launcher != LAUNCHER)
            )
        names = as_prompts(prompts)
        numbers = as_seeds(seeds, seed, len(names))
        noise = make_noise(model, numbers, latents)
        check_start(first, self.schedule.num_steps, init is not None or latents is not None)
        if init is not None:
            check_latents("init", init, noise.shape)
        # latents given for a later step are noised already; pure noise may still need a scale
        noised = init is None and first > 0
        start = noise if noised else self.solver.noised(init, noise, self.schedule.sigmas[first])
        if isinstance(model, nn.Module):
            model.to(self.device)
        starts = range(0, len(names), self.batch_size)
        run = RunStart(len(names), len(starts), self.schedule.num_steps - first, title)
        done: list[BatchEnd] = []
        emitted: list[Profile] = []
        with Observers(self.callbacks, run) as observers, autocast(self.device, self.precision):
            for begin in starts:
                chosen = slice(begin, begin + self.batch_size)
                clock = time.perf_counter()
                request = self._request(model, names[chosen], start[chosen], first, begin)
                result = self.loop.run(model, request, observe=observers.step)
                sample = result.sample.cpu()
                seconds = time.perf_counter() - clock
                result.trace.raise_if_nonfinite()
                emitted.extend(result.emitted)
                done.append(BatchEnd(names[chosen], numbers[chosen], sample, result.trace, seconds))
                trace = result.trace
                seen = replace(trace, steps=list(trace.steps), extremes=dict(trace.extremes))
                observers.batch(
                    BatchEnd(names[chosen], numbers[chosen], sample.clone(), seen, seconds)
                )
        warn_unused(self.loop.engine, [batch.trace for batch in done])
        return Samples(
            samples=torch.cat([batch.samples for batch in done]),
            prompts=names,
            seeds=numbers,
            traces=tuple(batch.trace for batch in done),
            seconds=sum(batch.seconds for batch in done),
            emitted=tuple(emitted),
        )

    def calibrate(
        self,
        model: TextModel,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        profiler: Policy | None = None,
    ) -> Profile:
        """Run the full network on calibration prompts and merge what the profiler emits.

        A profiler that wants several copies of each sample in a batch gets them; `batch_size`
        counts samples, not copies.

        Args:
            model: Encodes the prompts and predicts.
            prompts: Calibration prompts; keep them apart from those you test on.
            seed: Sample k draws its noise from `seed + k`.
            profiler: The profiler; by default the one that this sampler's policies ask for.

        Raises:
            PolicyError: No policy asks for a profiler and none was given, or it emitted nothing.
        """
        chosen = find_profiler(self.policies, profiler)
        if self._is_launched:
            request = CalibrationRequest(
                open=partial(open_worker, use_one_device(self), model),
                prompts=tuple(prompts),
                profiler=chosen,
                seed=seed,
                fabric=self.fabric,
            )
            return load_launcher(self.launcher).calibrate(request)[0]

        memory = NetworkMemory()
        with watch_model(model, memory, self.device, chosen) as seen:
            runs = CalibrationRuns(self, seen, prompts, seed, memory)
            within = replace(runs, sampler=self.with_policies((), gradients=True))
            profile = calibrate(chosen, runs.run, runs.solve, LoopSamples(runs, within), memory)
        return profile.with_provenance(
            **describe_samples(prompts, seed), **describe_run(self.device)
        )

    def solve(
        self, model: TextModel, prompts: Sequence[str], *, seed: int = 0, substeps: int = 8
    ) -> Solution:
        """The nearly exact solution of what this samples; see `erta_framework.sampling.solve`."""
        return solve(self, model, prompts, seed=seed, substeps=substeps)

    def with_policies(
        self,
        policies: Sequence[Policy],
        *,
        callbacks: Sequence[Callback] | None = None,
        solver: Solver | None = None,
        sigmas: Sequence[float] | None = None,
        gradients: bool | None = None,
    ) -> Sampler:
        """The same run in everything but its policies, and what else is given.

        Args:
            policies: In call order.
            callbacks: Observers; this sampler's by default.
            solver: Another solver; this sampler's by default.
            sigmas: Another schedule; this sampler's by default.
            gradients: Let gradients through, as in `SamplingLoop`; as this sampler by default.

        Raises:
            CapabilityError: A policy needs something that the solver cannot do.

        Example:
            >>> Sampler(num_steps=20, memory="1GiB").with_policies(()).schedule.num_steps
            20
        """
        twin = copy.copy(self)
        twin.policies = tuple(policies)
        twin.callbacks = self.callbacks if callbacks is None else tuple(callbacks)
        twin.solver = self.solver if solver is None else solver
        if sigmas is not None:
            twin.schedule = twin.solver.schedule(len(sigmas) - 1, sigmas)
        engine = Engine(twin.policies)
        through = self.loop.gradients if gradients is None else gradients
        twin.loop = SamplingLoop(engine, twin.solver, self.guidance, self.loop.memory, through)
        return twin

    def sample_job(
        self,
        model: TextModel,
        prompts: str | Path | Sequence[str],
        output: str | Path,
        *,
        seed: int = 0,
        resume: bool = False,
        log_json: bool = False,
        job: JobConfig | None = None,
    ) -> Summary:
        """Sample many prompts into a folder on this sampler's devices, through its launcher.

        Every process that takes part calls it; Fabric starts those that nobody else started, by
        running the script again, and Ray needs this process alone. A sample depends on its prompt,
        seed and settings alone, not on how many processes there are.

        Args:
            model: Encodes the prompts and predicts.
            prompts: A `.jsonl` file with `{"prompt": ..., "seed": ..., "steps": ...}` a line, a
                text file with a prompt a line, or prompts.
            output: Folder of the job; the same for every process.
            seed: Sample k has `seed + k` unless its line says otherwise.
            resume: Continue the job in the folder, or join it while it runs.
            log_json: Print JSON lines instead of a progress bar.
            job: Batch size and lease.

        Returns:
            How the job stands; complete on rank 0 unless samples failed.

        Raises:
            InputError: The prompts are wrong, or the folder holds another job.
            CapabilityError: The strategy splits one sample over ranks.
            MissingExtraError: Lightning, or Ray, is not installed.
        """
        request = JobRequest(
            open=partial(open_worker, use_one_device(self), model),
            prompts=prompts,
            output=output,
            seed=seed,
            resume=resume,
            log_json=log_json,
            fabric=self.fabric,
            job=job if job is not None else JobConfig(),
        )
        return load_launcher(self.launcher).sample(request)

    def _request(
        self, model: TextModel, names: Sequence[str], start: Tensor, first: int, number: int
    ) -> Request:
        with torch.no_grad():  # gradients are those of a run, not of its prompts
            conditions = model.encode([*names, *[""] * len(names)]).to(self.device)
        cond, uncond = conditions.chunk(2)
        return Request(
            latents=start.to(self.device),
            cond=cond,
            uncond=uncond,
            schedule=self.schedule,
            first=first,
            model={**model.fingerprint(), **describe_quantized(model)},
            request_id=f"batch-{number}",
            prompts=tuple(names),
        )
