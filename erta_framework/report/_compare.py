"""`compare`: samples the same prompts from the same noise with several methods, and measures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from erta_framework.errors import InputError
from erta_framework.metrics import psnr, relative_l1, ssim
from erta_framework.plugins import Policy
from erta_framework.report._comparison import Clock, Comparison, Method, MethodRow
from erta_framework.report._recorder import TrajectoryRecorder
from erta_framework.sampling import (
    Callback,
    Guidance,
    Sampler,
    Samples,
    TextModel,
    TextSampler,
)
from erta_framework.session import Trace


class SamplerFactory(Protocol):
    """Makes the sampler of a method, with the policies of the method and perhaps an observer."""

    def __call__(
        self,
        method: Method,
        policies: Sequence[Policy],
        callbacks: Sequence[Callback],
        batch_size: int,
    ) -> TextSampler: ...


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
    make_sampler: SamplerFactory | None = None,
    exact: Tensor | None = None,
    exact_note: str = "",
    clock: Clock = "wall",
) -> Comparison:
    """Sample the prompts with every method from the same noise and measure.

    Every method first samples `recorded` prompts untimed. That warms the machine up, and the
    latents of this pass show where runs drift apart. Then the prompts are sampled in `rounds` parts
    and the methods take turns, so that a busy machine slows all of them alike.

    Args:
        model: The model.
        methods: The first is the reference that the others are measured against.
        prompts: One per sample.
        seed: Sample k draws its noise from `seed + k`.
        rounds: Parts into which the prompts are cut.
        guidance: `CFG(scale=3.0)` by default.
        accelerator: As in `Sampler`.
        callbacks: Observers of every run.
        recorded: Prompts in the untimed pass.
        make_sampler: Makes the samplers, such as those of a pipeline, instead of `Sampler` with
            `guidance` and `accelerator`.
        exact: The exact solution of the prompts, `[N, C, ...]`, such as the last latents of
            `erta_framework.sampling.solve`.
        exact_note: How exact it is, or why there is none.
        clock: Whether speed-ups are of wall or of processor seconds.

    Raises:
        InputError: No methods, two of one name, no prompts, or `guidance` or `accelerator` beside
            `make_sampler`.
    """
    names = [method.name for method in methods]
    if not names or len(set(names)) < len(names) or not prompts:
        raise InputError(f"compare needs prompts and methods of different names, got {names}")
    if make_sampler is None:
        make_sampler = _make_default_factory(guidance, accelerator)
    elif guidance is not None or accelerator != "auto":
        raise InputError(
            "compare got make_sampler and also guidance or accelerator, which only its own "
            "samplers take; set them in make_sampler"
        )
    few = prompts[:recorded]
    latents = {}
    for method in methods:
        observed = make_sampler(
            method, [*method.policies, TrajectoryRecorder()], callbacks, len(few)
        )
        profile = observed.sample(model, few, seed=seed).emitted[-1]
        latents[method.name] = profile.statistics["latents"]
    size = -(-len(prompts) // rounds)
    samplers = [make_sampler(method, method.policies, callbacks, size) for method in methods]
    runs: list[list[Samples]] = [[] for _ in methods]
    spent = [0.0] * len(methods)
    for begin in range(0, len(prompts), size):
        for position, each in enumerate(samplers):
            part = prompts[begin : begin + size]
            began = time.process_time()
            runs[position].append(each.sample(model, part, seed=seed + begin))
            spent[position] += time.process_time() - began
    samples = tuple(torch.cat([run.samples for run in parts]) for parts in runs)
    return Comparison(
        methods=tuple(methods),
        rows=_measure_rows(methods, runs, samples, spent, exact, clock),
        samples=samples,
        traces=tuple(parts[0].traces[0] for parts in runs),
        distances=_measure_distances(methods, latents),
        prompts=tuple(prompts),
        seed=seed,
        recorded=len(few),
        clock=clock,
        exact_note=exact_note,
    )


def _make_default_factory(guidance: Guidance | None, accelerator: str) -> SamplerFactory:
    """Samplers on the framework's own loop."""

    def make_sampler(
        method: Method,
        policies: Sequence[Policy],
        callbacks: Sequence[Callback],
        batch_size: int,
    ) -> TextSampler:
        return Sampler(
            policies,
            callbacks,
            solver=method.solver,
            guidance=guidance,
            num_steps=method.steps,
            accelerator=accelerator,
            batch_size=batch_size,
        )

    return make_sampler


def _measure_rows(
    methods: Sequence[Method],
    runs: Sequence[Sequence[Samples]],
    samples: Sequence[Tensor],
    processor: Sequence[float],
    exact: Tensor | None,
    clock: Clock,
) -> tuple[MethodRow, ...]:
    wall = [sum(run.seconds for run in parts) for parts in runs]
    taken = processor if clock == "processor" else wall
    work = [sum(count_work(trace) for run in parts for trace in run.traces) for parts in runs]
    rows = []
    for position, (method, parts) in enumerate(zip(methods, runs, strict=True)):
        traces = [trace for run in parts for trace in run.traces]
        reference = position == 0
        pair = (samples[position], samples[0])
        rows.append(
            MethodRow(
                name=method.name,
                calls=sum(trace.network_calls for trace in traces) / len(traces),
                computed=sum(len(trace.computed_steps) for trace in traces) / len(traces),
                steps=method.steps,
                work=work[position] / work[0],
                seconds=wall[position],
                processor_seconds=processor[position],
                speedup=taken[0] / taken[position],
                psnr=() if reference else tuple(psnr(*pair).tolist()),
                ssim=() if reference else tuple(ssim(*pair).tolist()),
                exact_psnr=() if exact is None else tuple(psnr(pair[0], exact).tolist()),
            )
        )
    return tuple(rows)


def count_work(trace: Trace) -> float:
    """Work of the network calls and of the trials, which may be on smaller latents, in samples."""
    if not trace.trial_calls:
        return trace.work
    return trace.work + trace.trial_samples * trace.trial_share / trace.trial_calls


def _measure_distances(
    methods: Sequence[Method], latents: Mapping[str, Tensor]
) -> dict[str, tuple[float, ...]]:
    reference = latents[methods[0].name]
    found = {}
    for method in methods[1:]:
        own = latents[method.name]
        if own.shape == reference.shape:
            pairs = zip(own, reference, strict=True)
            found[method.name] = tuple(
                float(relative_l1(a.double(), b.double()).mean()) for a, b in pairs
            )
    return found
