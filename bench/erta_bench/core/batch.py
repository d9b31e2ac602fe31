"""Throughput of per-sample decisions: one batch of easy and hard prompts, four ways to run it.

EasyCache decides for each sample. How hard a prompt is follows from measurement: the network calls
that it takes when it is sampled alone. Every row is compared with the full run of the same prompts
from the same noise, in the same process. The speed that is shown is the ratio of processor seconds,
which other load disturbs less than wall seconds; the records hold both.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import pstdev
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from erta_bench.core.outcome import average, finite
from erta_bench.core.report import Bench, Row, Value
from erta_framework.config import build_policies
from erta_framework.errors import InputError
from erta_framework.metrics import psnr
from erta_framework.plugins import Engine
from erta_framework.sampling import (
    CFG,
    FlowEuler,
    Guidance,
    Request,
    SamplingLoop,
    TextModel,
    sample_noise,
)
from erta_framework.session import Session, SessionInfo, Trace

PER_SAMPLE, SAFE, MEAN, ALONE = "per sample", "safe maximum", "batch mean", "one by one"
MODES = (PER_SAMPLE, SAFE, MEAN, ALONE)
"""Each sample decides; all compute where one must; the batch means decide; batches of one."""
COLUMNS = {
    "name": "run",
    "threshold": "tau",
    "network_samples": "samples",
    "calls_mean": "calls",
    "calls_min": "least",
    "calls_max": "most",
    "processor_speedup": "speed",
    "psnr_mean": "PSNR",
    "psnr_min": "least",
    "psnr_hard": "hard half",
}


class WholeSession(Session):
    """A session whose driver cannot run the network on part of a batch."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As always, but one sample that must be computed computes all."""
        return super().forward(*args, **{**kwargs, "rows": "the benchmark runs whole batches"})


class WholeEngine(Engine):
    """An engine under a driver that cannot run the network on part of a batch."""

    def session(self, info: SessionInfo) -> Session:
        """A session that treats the whole batch alike."""
        self.check(info.capabilities, info.solver or "this driver")
        return WholeSession(self, info)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all rows share.

    Attributes:
        model: The model.
        steps: Steps of a run.
        guidance: How branches combine.
        options: Further options of EasyCache, such as `{"warmup": 5}`.
    """

    model: TextModel
    steps: int = 50
    guidance: Guidance = field(default_factory=lambda: CFG(scale=3.0))
    options: Mapping[str, object] = field(default_factory=dict)

    def engine(self, mode: str, threshold: float) -> Engine:
        """EasyCache as this mode runs it."""
        options = {**self.options, "threshold": threshold, "per_sample": mode != MEAN}
        policies = build_policies([{"easycache": options}])
        return WholeEngine(policies) if mode == SAFE else Engine(policies)


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts that are sampled together, each from the noise of its own seed."""

    name: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def only(self, place: int) -> Batch:
        """One sample of it."""
        return self.at([place])

    def at(self, places: Sequence[int], name: str = "") -> Batch:
        """Some samples of it."""
        prompts, seeds = zip(*((self.prompts[k], self.seeds[k]) for k in places), strict=True)
        return Batch(name or self.name, tuple(prompts), tuple(seeds))


@dataclass(frozen=True, slots=True)
class Run:
    """What one way of running a batch gave.

    Attributes:
        samples: `[B, C, ...]`.
        network_calls, network_samples: Totals over all batches of it.
        calls: Network calls of each branch that each sample took.
        seconds: Wall seconds.
        processor: Processor seconds, which other programs disturb less.
    """

    samples: Tensor
    network_calls: int
    network_samples: int
    calls: tuple[float, ...]
    seconds: float
    processor: float


def batch_bench(
    setting: Setting,
    prompts: Sequence[str],
    *,
    thresholds: Sequence[float] = (0.02, 0.05),
    seed: int = 0,
    progress: bool = False,
    command: str = "batch",
) -> Bench:
    """Run a batch as it comes, and one that is mixed on purpose, in every way and threshold.

    The mixed batch is chosen by measurement: the prompts and every word of them as a prompt of its
    own are sampled with the first threshold; half of the batch are those with the fewest calls,
    half those with the most.

    Args:
        setting: Model and what else all rows share.
        prompts: Prompts of the batch as it comes.
        thresholds: Thresholds of EasyCache.
        seed: Sample k draws its noise from `seed + k`.
        progress: Show a progress bar.
        command: Named in the result.

    Returns:
        Rows `name` = `full` or a mode of `MODES`; `calls_of_samples` lists the network calls of
        each branch that each prompt took, in the order of the setting `prompts.<batch>`.

    Raises:
        InputError: Fewer than two prompts, or no threshold.
    """
    if len(prompts) < 2 or not thresholds:
        raise InputError(
            f"{len(prompts)} prompts and {len(thresholds)} thresholds; give at least 2 prompts and "
            "1 threshold"
        )
    given = Batch("as they come", tuple(prompts), tuple(range(seed, seed + len(prompts))))
    rows: list[Row] = []
    with Progress(disable=not progress) as bar:
        task = bar.add_task("choosing a mixed batch", total=1 + 2 * (2 + 4 * len(thresholds)))
        batches = [given, mixed(setting, given, thresholds[0])]
        bar.advance(task)
        for batch in batches:
            bar.update(task, description=f"full: {batch.name}")
            fulls = [sampled(setting, Engine([]), batch)]
            bar.advance(task)
            runs: dict[tuple[float, str], Run] = {}
            for threshold in thresholds:
                for mode in MODES:
                    bar.update(task, description=f"{batch.name}, {threshold}: {mode}")
                    runs[threshold, mode] = ran(setting, mode, threshold, batch)
                    bar.advance(task)
            # the full run again: every speed is relative to it, and the machine may have slowed
            fulls.append(sampled(setting, Engine([]), batch))
            bar.advance(task)
            rows += records(setting, batch, fulls, runs)
    facts: dict[str, Value] = {
        **{f"model.{key}": value for key, value in setting.model.fingerprint().items()},
        "guidance": repr(setting.guidance),
        "solver": repr(FlowEuler()),
        "policy": repr(setting.engine(PER_SAMPLE, thresholds[0]).policies[0]),
        "batch_size": len(prompts),
        **{f"prompts.{batch.name}": "; ".join(batch.prompts) for batch in batches},
        **{f"seeds.{batch.name}": " ".join(map(str, batch.seeds)) for batch in batches},
    }
    return Bench(command, rows, COLUMNS, facts, section="threshold")


def mixed(setting: Setting, given: Batch, threshold: float) -> Batch:
    """As many samples, half of them the easiest and half the hardest of a larger pool."""
    words = dict.fromkeys(word for prompt in given.prompts for word in prompt.split())
    pool = tuple(dict.fromkeys([*given.prompts, *words]))
    first = given.seeds[0]
    everything = Batch("pool", pool, tuple(range(first, first + len(pool))))
    calls = sampled(setting, setting.engine(PER_SAMPLE, threshold), everything).calls
    ranked = sorted(range(len(pool)), key=lambda k: (calls[k], k))
    size = len(given.prompts)
    easy, hard = ranked[: size - size // 2], ranked[len(ranked) - size // 2 :]
    return everything.at([*easy, *hard], "easy and hard")


def ran(setting: Setting, mode: str, threshold: float, batch: Batch) -> Run:
    """Run a batch in one of the modes."""
    engine = setting.engine(mode, threshold)
    if mode != ALONE:
        return sampled(setting, engine, batch)
    single = [sampled(setting, engine, batch.only(k)) for k in range(len(batch.prompts))]
    return Run(
        torch.cat([run.samples for run in single]),
        sum(run.network_calls for run in single),
        sum(run.network_samples for run in single),
        tuple(run.calls[0] for run in single),
        sum(run.seconds for run in single),
        sum(run.processor for run in single),
    )


def sampled(setting: Setting, engine: Engine, batch: Batch) -> Run:
    """Sample one batch with the own loop."""
    model, solver = setting.model, FlowEuler()
    with torch.no_grad():
        cond, uncond = model.encode([*batch.prompts, *[""] * len(batch.prompts)]).chunk(2)
    request = Request(
        latents=sample_noise(model.latent_shape, batch.seeds),
        cond=cond,
        uncond=uncond,
        schedule=solver.schedule(setting.steps),
        model=model.fingerprint(),
    )
    loop = SamplingLoop(engine, solver, setting.guidance)
    wall, processor = time.perf_counter(), time.process_time()
    result = loop.run(model, request)
    seconds, processor = time.perf_counter() - wall, time.process_time() - processor
    trace: Trace = result.trace
    calls = (trace.calls_for(k) / len(setting.guidance.names) for k in range(len(batch.prompts)))
    return Run(
        result.sample.cpu(),
        trace.network_calls,
        trace.network_samples,
        tuple(calls),
        seconds,
        processor,
    )


def records(
    setting: Setting, batch: Batch, fulls: Sequence[Run], runs: Mapping[tuple[float, str], Run]
) -> list[Row]:
    """Flat records of one batch: the full run and every mode."""
    full = fulls[0]
    wall = average([run.seconds for run in fulls])
    processor = average([run.processor for run in fulls])
    size = len(batch.prompts)
    shared: dict[str, Value] = {"batch": batch.name, "steps": setting.steps, "prompts": size}
    first: dict[str, Value] = {"name": "full", "threshold": None, **shared, **counts(full)}
    first |= {"seconds": wall, "processor_seconds": processor, "samples_per_second": size / wall}
    rows: list[Row] = [{**first, "speedup": 1.0, "processor_speedup": 1.0}]
    for (threshold, mode), run in runs.items():
        alone = runs[threshold, ALONE]
        hardest = sorted(range(size), key=lambda k: (alone.calls[k], k))[size - size // 2 :]
        quality = psnr(run.samples, full.samples)
        same = sum(a == b for a, b in zip(run.calls, alone.calls, strict=True))
        measured: dict[str, Value] = {
            "seconds": run.seconds,
            "processor_seconds": run.processor,
            "speedup": wall / run.seconds,
            "processor_speedup": processor / run.processor,
            "samples_per_second": size / run.seconds,
            "psnr_mean": finite(quality.mean()),
            "psnr_min": finite(quality.min()),
            "psnr_hard": finite(quality[hardest].mean()),
            "same_calls_as_alone": same,
            "difference_to_alone": float((run.samples - alone.samples).abs().max()),
        }
        named: dict[str, Value] = {"name": mode, "threshold": threshold}
        rows.append({**named, **shared, **counts(run), **measured})
    return rows


def counts(run: Run) -> dict[str, Value]:
    """What went through the network."""
    return {
        "network_calls": run.network_calls,
        "network_samples": run.network_samples,
        "calls_mean": average(run.calls),
        "calls_min": min(run.calls),
        "calls_max": max(run.calls),
        "calls_std": pstdev(run.calls),
        "calls_of_samples": " ".join(f"{number:g}" for number in run.calls),
    }
