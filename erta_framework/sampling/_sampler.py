"""`Sampler`: the front door. A thin facade over `Engine` and `SamplingLoop`."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from erta_framework.calibration import (
    Profile,
    calibrate,
    describe_run,
    describe_samples,
    find_profiler,
)
from erta_framework.errors import CapabilityError, InputError
from erta_framework.jobs import (
    CalibrationRequest,
    FabricConfig,
    JobConfig,
    JobRequest,
    Summary,
    load_launcher,
)
from erta_framework.plugins import Engine, Policy, Profiler
from erta_framework.sampling._callbacks import BatchEnd, Callback, Observers, RunStart
from erta_framework.sampling._loop import Request, SamplingLoop
from erta_framework.sampling._text_model import TextModel, sample_noise
from erta_framework.sampling.guidance import CFG, Guidance
from erta_framework.sampling.solvers import FlowEuler, Schedule, Solver, suggest_solver
from erta_framework.session import Trace

PRECISIONS = {"32": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """What `Sampler.sample` gives.

    Attributes:
        samples: `[N, C, ...]` in the order of the prompts, on the CPU.
        prompts: The prompts.
        seeds: Seed of each sample.
        traces: One trace a batch.
        seconds: Wall seconds of the sampling, without encoding prompts.
        emitted: Profiles that profilers emitted, one a batch.
    """

    samples: Tensor
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    traces: tuple[Trace, ...]
    seconds: float
    emitted: tuple[Profile, ...]

    @property
    def network_calls(self) -> int:
        """Network calls that were made, over all batches."""
        return sum(trace.network_calls for trace in self.traces)


class TextSampler(Protocol):
    """Samples and calibrates prompts: `Sampler`, or a pipeline that runs the same model.

    `facts` says in words what samples, for a report: loop, solver or scheduler, and guidance.
    """

    @property
    def facts(self) -> Mapping[str, str]: ...

    def sample(self, model: TextModel, prompts: Sequence[str], *, seed: int = 0) -> Samples: ...

    def calibrate(
        self,
        model: TextModel,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        profiler: Policy | None = None,
    ) -> Profile: ...


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

    Raises:
        CapabilityError: An unknown accelerator, number of devices or precision, or a policy that
            needs something the solver cannot do.

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
    ) -> None:
        self.policies = tuple(policies)
        self.callbacks = tuple(callbacks)
        self.solver: Solver = solver if solver is not None else FlowEuler()
        self.guidance: Guidance = guidance if guidance is not None else CFG(scale=3.0)
        self.schedule: Schedule = self.solver.schedule(num_steps, sigmas)
        self.fabric = FabricConfig(
            accelerator=None if accelerator == "auto" else accelerator,
            devices=None if devices == 1 else devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=None if precision == "32" else precision,
        )
        # each of several processes has one device; which, Fabric says when it launches them
        self.device = resolve_device(
            accelerator, 1 if self.fabric.is_distributed and devices else devices
        )
        self.precision = check_precision(precision)
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, it must be at least 1")
        self.batch_size = batch_size
        self.loop = SamplingLoop(Engine(self.policies), self.solver, self.guidance)

    @property
    def facts(self) -> dict[str, str]:
        """What samples, in words for a report."""
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
        predicted = getattr(model, "prediction", None)
        if predicted is not None and predicted not in self.solver.capabilities:
            raise CapabilityError(
                f"{type(model).__name__} predicts {predicted}, {self.solver!r} offers "
                f"{', '.join(sorted(self.solver.capabilities))}; use a solver that offers "
                f"{predicted}, such as {suggest_solver(predicted)}"
            )
        if self.fabric.is_distributed:
            raise CapabilityError(
                f"this sampler has several devices ({self.fabric}), whose samples go to a folder; "
                "use sample_job(model, prompts, folder), or devices=1"
            )
        names = tuple(prompts)
        if isinstance(prompts, str) or not names:
            raise InputError(f"prompts is {prompts!r}; give a list with at least one prompt")
        strange = [name for name in names if not isinstance(name, str)]
        if strange:
            raise InputError(f"prompts holds {strange[0]!r}; every prompt is a string")
        numbers = tuple(seeds) if seeds is not None else tuple(seed + k for k in range(len(names)))
        noise = self._noise(model, names, numbers, latents)
        if not 0 <= first < self.schedule.num_steps:
            raise InputError(f"first is {first}, outside the {self.schedule.num_steps} steps")
        if first > 0 and init is None and latents is None:
            raise InputError(
                f"first is {first}, but there is nothing to start from there; give init (clean "
                "samples) or latents (already noised)"
            )
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
        with Observers(self.callbacks, run) as observers, self._autocast():
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
        if self.fabric.is_distributed:
            request = CalibrationRequest(
                open=partial(open_worker, use_one_device(self), model),
                prompts=tuple(prompts),
                profiler=chosen,
                seed=seed,
                fabric=self.fabric,
            )
            return load_launcher().calibrate(request)[0]

        def run(current: Profiler) -> Sequence[Profile]:
            twin = copy.copy(self)  # the same run in everything but its policies
            twin.policies = (current,)
            twin.loop = SamplingLoop(Engine(twin.policies), self.solver, self.guidance)
            copies = current.calibration_copies
            twin.batch_size = self.batch_size * copies
            names, seeds = repeat_batches(prompts, seed, self.batch_size, copies)
            return twin.sample(model, names, seeds=seeds, title="calibrating").emitted

        return calibrate(chosen, run).with_provenance(
            **describe_samples(prompts, seed), **describe_run(self.device)
        )

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
        """Sample many prompts into a folder on this sampler's devices, through Lightning Fabric.

        Every process that takes part calls it; Fabric starts those that nobody else started, by
        running the script again. A sample depends on its prompt, seed and settings alone, not on
        how many processes there are.

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
            MissingExtraError: Lightning is not installed.
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
        return load_launcher().sample(request)

    def _noise(
        self, model: TextModel, names: Sequence[str], seeds: Sequence[int], latents: Tensor | None
    ) -> Tensor:
        if len(seeds) != len(names):
            raise InputError(f"{len(seeds)} seeds for {len(names)} prompts; give one a prompt")
        shape = (len(names), *model.latent_shape)
        if latents is None:
            return sample_noise(model.latent_shape, seeds)
        check_latents("latents", latents, shape)
        return latents

    def _request(
        self, model: TextModel, names: Sequence[str], start: Tensor, first: int, number: int
    ) -> Request:
        conditions = model.encode([*names, *[""] * len(names)]).to(self.device)
        cond, uncond = conditions.chunk(2)
        return Request(
            latents=start.to(self.device),
            cond=cond,
            uncond=uncond,
            schedule=self.schedule,
            first=first,
            model=model.fingerprint(),
            request_id=f"batch-{number}",
            prompts=tuple(names),
        )

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = PRECISIONS[self.precision]
        if dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=dtype)


def repeat_batches(
    prompts: Sequence[str], seed: int, batch: int, copies: int
) -> tuple[Sequence[str], list[int]]:
    """Prompts and their seeds with every batch repeated as a whole, for profilers that ask so.

    Example:
        >>> repeat_batches(["a", "b", "c"], seed=5, batch=2, copies=2)
        (['a', 'b', 'a', 'b', 'c', 'c'], [5, 6, 5, 6, 7, 7])
    """
    if copies == 1 or isinstance(prompts, str):
        return prompts, [seed + k for k in range(len(prompts))]
    places = [
        place
        for begin in range(0, len(prompts), batch)
        for place in [*range(begin, min(begin + batch, len(prompts)))] * copies
    ]
    return [prompts[place] for place in places], [seed + place for place in places]


def use_one_device(sampler: Sampler) -> Sampler:
    """The sampler on one of its devices."""
    twin = copy.copy(sampler)
    twin.fabric = FabricConfig()
    return twin


def open_worker(
    sampler: Sampler, model: TextModel, accelerator: str, precision: str
) -> tuple[Sampler, TextModel]:
    """A sampler and its model for one process of a job, in Fabric's precision."""
    twin = copy.copy(sampler)
    twin.device = resolve_device(accelerator, 1)
    twin.precision = check_precision(precision)
    return twin, model


def check_latents(name: str, latents: Tensor, shape: Sequence[int]) -> None:
    """Refuse latents of another shape, or with NaN or infinite values.

    Raises:
        InputError: Names the argument and both values.
    """
    if tuple(latents.shape) != tuple(shape):
        raise InputError(f"{name} has shape {tuple(latents.shape)}, expected {tuple(shape)}")
    bad = [
        k for k, good in enumerate(latents.isfinite().flatten(1).all(dim=1).tolist()) if not good
    ]
    if bad:
        raise InputError(
            f"{name} of sample {', '.join(map(str, islice(bad, 5)))} is NaN or infinite"
        )


def check_precision(precision: str) -> str:
    """A known precision name.

    Raises:
        CapabilityError: The name is unknown.
    """
    if precision not in PRECISIONS:
        raise CapabilityError(
            f"precision {precision!r} is unknown; use one of {', '.join(PRECISIONS)}"
        )
    return precision


def resolve_device(accelerator: str, devices: int | str) -> torch.device:
    """The device to sample on.

    Raises:
        CapabilityError: Several devices, or an accelerator that is not there.
    """
    if devices != 1:
        raise CapabilityError(
            f"devices={devices}: a process samples on one device; use devices=1, or "
            "Sampler(devices=...).sample_job(...), which starts a process a device"
        )
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if accelerator == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if not available.get(accelerator, False):
        usable = ", ".join(name for name, there in available.items() if there)
        raise CapabilityError(f"accelerator {accelerator!r} is not available; use auto, {usable}")
    return torch.device(accelerator)
