"""Several ways to sample the same prompts from the same noise, measured in one run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor

from erta_framework.errors import InputError
from erta_framework.metrics import psnr, relative_l1, ssim
from erta_framework.plugins import Policy
from erta_framework.report._recorder import TrajectoryRecorder
from erta_framework.sampling import (
    Callback,
    Guidance,
    Sampler,
    Samples,
    Solver,
    TextModel,
    TextSampler,
)
from erta_framework.session import Trace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Method:
    """One way to sample.

    Attributes:
        name: A short name.
        detail: What it does, in a sentence.
        steps: Steps of its schedule.
        policies: Its policies.
        solver: Its solver; `FlowEuler()` by default.
        scheduler: Name of its scheduler where a pipeline samples; None is the pipeline's choice.
        subject: Whether this is the method that the report is about.
    """

    name: str
    detail: str
    steps: int
    policies: tuple[Policy, ...] = ()
    solver: Solver | None = None
    scheduler: str | None = None
    subject: bool = False


class SamplerOf(Protocol):
    """Makes the sampler of a method, with policies of its own or with observers among them."""

    def __call__(
        self,
        method: Method,
        policies: Sequence[Policy],
        callbacks: Sequence[Callback],
        batch_size: int,
    ) -> TextSampler: ...


@dataclass(frozen=True, slots=True)
class Row:
    """What one method measured.

    Attributes:
        name: Name of the method.
        calls: Network calls of one batch, all guidance branches counted.
        computed: Steps in which the network ran.
        steps: Steps of the schedule.
        seconds: Wall seconds over all prompts.
        speedup: Seconds of the reference over these.
        psnr: PSNR of each sample against the reference; empty for the reference.
        ssim: SSIM of each sample against the reference; empty for the reference.
    """

    name: str
    calls: float
    computed: float
    steps: int
    seconds: float
    speedup: float
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]

    @property
    def psnr_mean(self) -> float | None:
        """Mean PSNR in dB; None for the reference."""
        return sum(self.psnr) / len(self.psnr) if self.psnr else None

    @property
    def ssim_mean(self) -> float | None:
        """Mean SSIM; None for the reference."""
        return sum(self.ssim) / len(self.ssim) if self.ssim else None

    def record(self) -> dict[str, object]:
        """A flat record for JSON; a mean that is missing or infinite is None."""
        plain = {key: value for key, value in asdict(self).items() if key not in ("psnr", "ssim")}
        means = {"psnr_mean": self.psnr_mean, "ssim_mean": self.ssim_mean}
        finite = {k: v if v is not None and math.isfinite(v) else None for k, v in means.items()}
        return {**plain, **finite}


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Methods, what they gave and what they measured; the first is the reference.

    Attributes:
        methods: The methods.
        rows: One row a method.
        samples: Samples `[N, C, ...]` of each method.
        traces: The first batch's trace of each method.
        distances: Relative L1 distance of the latents from the reference's after every step, for
            methods on the reference's schedule, averaged over `recorded` samples.
        prompts: The prompts.
        seed: Sample k draws its noise from `seed + k`.
        recorded: Number of samples behind `distances`.
    """

    methods: tuple[Method, ...]
    rows: tuple[Row, ...]
    samples: tuple[Tensor, ...]
    traces: tuple[Trace, ...]
    distances: Mapping[str, tuple[float, ...]]
    prompts: tuple[str, ...]
    seed: int
    recorded: int

    @property
    def subject(self) -> int:
        """Position of the method that the report is about; the last one if none says so."""
        marked = [k for k, method in enumerate(self.methods) if method.subject]
        return marked[0] if marked else len(self.methods) - 1


def compare(
    model: TextModel,
    methods: Sequence[Method],
    prompts: Sequence[str],
    *,
    seed: int = 0,
    rounds: int = 2,
    guidance: Guidance | None = None,
    accelerator: str = "auto",
    callbacks: Sequence[Callback] = (),
    recorded: int = 2,
    sampler_of: SamplerOf | None = None,
) -> Comparison:
    """Sample the prompts with every method from the same noise and measure.

    Every method first samples `recorded` prompts untimed: that warms the machine up, and its
    latents show where runs drift apart. Then the prompts are sampled in `rounds` parts, all methods
    taking turns, so that a busy machine slows all of them alike.

    Args:
        model: The model.
        methods: The first is the reference that the others are measured against.
        prompts: One a sample.
        seed: Sample k draws its noise from `seed + k`.
        rounds: Parts into which the prompts are cut.
        guidance: `CFG(scale=3.0)` by default.
        accelerator: As for `Sampler`.
        callbacks: Observers of every run.
        recorded: Prompts in the untimed pass.
        sampler_of: Makes the samplers, such as those of a pipeline, instead of `Sampler` with
            `guidance` and `accelerator`.

    Raises:
        InputError: No methods, two of one name, or no prompts.
    """
    names = [method.name for method in methods]
    if not names or len(set(names)) < len(names) or not prompts:
        raise InputError(f"compare needs prompts and methods of different names, got {names}")
    size = -(-len(prompts) // rounds)

    def sampler(method: Method, batch_size: int, *observers: Policy) -> TextSampler:
        policies = [*method.policies, *observers]
        if sampler_of is not None:
            return sampler_of(method, policies, callbacks, batch_size)
        return Sampler(
            policies,
            callbacks,
            solver=method.solver,
            guidance=guidance,
            num_steps=method.steps,
            accelerator=accelerator,
            batch_size=batch_size,
        )

    few = prompts[:recorded]
    latents = {
        method.name: sampler(method, len(few), TrajectoryRecorder())
        .sample(model, few, seed=seed)
        .emitted[-1]
        .statistics["latents"]
        for method in methods
    }
    samplers = [sampler(method, size) for method in methods]
    runs: list[list[Samples]] = [[] for _ in methods]
    for begin in range(0, len(prompts), size):
        for position, each in enumerate(samplers):
            part = prompts[begin : begin + size]
            runs[position].append(each.sample(model, part, seed=seed + begin))
    samples = tuple(torch.cat([run.samples for run in parts]) for parts in runs)
    return Comparison(
        methods=tuple(methods),
        rows=_rows(methods, runs, samples),
        samples=samples,
        traces=tuple(parts[0].traces[0] for parts in runs),
        distances=_distances(methods, latents),
        prompts=tuple(prompts),
        seed=seed,
        recorded=len(few),
    )


def _rows(
    methods: Sequence[Method], runs: Sequence[Sequence[Samples]], samples: Sequence[Tensor]
) -> tuple[Row, ...]:
    seconds = [sum(run.seconds for run in parts) for parts in runs]
    rows = []
    for position, (method, parts) in enumerate(zip(methods, runs, strict=True)):
        traces = [trace for run in parts for trace in run.traces]
        reference = position == 0
        pair = (samples[position], samples[0])
        rows.append(
            Row(
                name=method.name,
                calls=sum(trace.network_calls for trace in traces) / len(traces),
                computed=sum(len(trace.computed_steps) for trace in traces) / len(traces),
                steps=method.steps,
                seconds=seconds[position],
                speedup=seconds[0] / seconds[position],
                psnr=() if reference else tuple(psnr(*pair).tolist()),
                ssim=() if reference else tuple(ssim(*pair).tolist()),
            )
        )
    return tuple(rows)


def _distances(
    methods: Sequence[Method], latents: Mapping[str, Tensor]
) -> dict[str, tuple[float, ...]]:
    reference = latents[methods[0].name]
    found = {}
    for method in methods[1:]:
        own = latents[method.name]
        if own.shape == reference.shape:
            pairs = zip(own, reference, strict=True)
            found[method.name] = tuple(float(relative_l1(a, b).mean()) for a, b in pairs)
    return found
