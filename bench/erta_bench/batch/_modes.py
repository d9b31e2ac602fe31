"""A batch, and the four ways to run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from erta_bench.setting import SUBSTEPS, time_call
from erta_framework.calibration import Solution
from erta_framework.config import build_policies
from erta_framework.plugins import Engine
from erta_framework.sampling import (
    CFG,
    FlowEuler,
    Guidance,
    Request,
    Sampler,
    SamplingLoop,
    TextModel,
    resolve_device,
    sample_noise,
    solve,
)
from erta_framework.session import (
    Call,
    FunctionNetwork,
    Network,
    Session,
    SessionInfo,
    Site,
    Trace,
)

PER_SAMPLE, SAFE, MEAN, ALONE = "per sample", "safe maximum", "batch mean", "one by one"
MODES = (PER_SAMPLE, SAFE, MEAN, ALONE)
"""Each sample decides; all compute where one must; the batch means decide; batches of one."""


class WholeBatchSession(Session):
    """A session whose driver cannot run the network on part of a batch."""

    def ask(self, site: Site, x: Tensor, network: Network, *, started: float | None = None) -> Call:
        """Compute all samples where one must be computed."""
        whole = FunctionNetwork(network.run, undivided="the benchmark runs whole batches")
        return super().ask(site, x, whole, started=started)


class WholeBatchEngine(Engine):
    """An engine under a driver that cannot run the network on part of a batch."""

    def session(self, info: SessionInfo) -> Session:
        """A session that computes all samples where one must be computed."""
        self.check(info.capabilities, info.solver or "this driver")
        return WholeBatchSession(self, info)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSetting:
    """What all rows share.

    Attributes:
        model: The model.
        steps: Steps of a run.
        guidance: How branches combine.
        options: Further options of EasyCache, such as `{"warmup": 5}`.
        accelerator: `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.
        substeps: Steps of the exact solution for each step of a run; even.
    """

    model: TextModel
    steps: int = 50
    guidance: Guidance = field(default_factory=lambda: CFG(scale=3.0))
    options: Mapping[str, object] = field(default_factory=dict)
    accelerator: str = "auto"
    substeps: int = SUBSTEPS

    @property
    def device(self) -> torch.device:
        """Where all rows run."""
        return resolve_device(self.accelerator, 1)

    def engine(self, mode: str, threshold: float) -> Engine:
        """An engine with EasyCache, as this mode runs it."""
        options = {**self.options, "threshold": threshold, "per_sample": mode != MEAN}
        policies = build_policies([{"easycache": options}])
        return WholeBatchEngine(policies) if mode == SAFE else Engine(policies)


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts that are sampled together, each from the noise of its own seed."""

    name: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def select(self, places: Sequence[int], name: str = "") -> Batch:
        """The samples at these places, under a name of their own where one is given."""
        prompts, seeds = zip(*((self.prompts[k], self.seeds[k]) for k in places), strict=True)
        return Batch(name or self.name, tuple(prompts), tuple(seeds))


@dataclass(frozen=True, slots=True)
class BatchRun:
    """What one way of running a batch gave.

    Attributes:
        samples: `[B, C, ...]`.
        network_calls, network_samples: Totals over all batches of it.
        work: The work of all network calls, in samples.
        calls: Network calls of each branch that each sample took.
        seconds: Wall seconds.
        processor: Processor seconds, which other programs disturb less.
    """

    samples: Tensor
    network_calls: int
    network_samples: int
    work: float
    calls: tuple[float, ...]
    seconds: float
    processor: float


def choose_mixed_batch(setting: BatchSetting, given: Batch, threshold: float) -> Batch:
    """As many samples as the batch has: the easiest and the hardest of a larger pool, half each."""
    words = dict.fromkeys(word for prompt in given.prompts for word in prompt.split())
    pool = tuple(dict.fromkeys([*given.prompts, *words]))
    first = given.seeds[0]
    everything = Batch("pool", pool, tuple(range(first, first + len(pool))))
    calls = sample_batch(setting, setting.engine(PER_SAMPLE, threshold), everything).calls
    ranked = sorted(range(len(pool)), key=lambda k: (calls[k], k))
    size = len(given.prompts)
    easy, hard = ranked[: size - size // 2], ranked[len(ranked) - size // 2 :]
    return everything.select([*easy, *hard], "easy and hard")


def run_mode(setting: BatchSetting, mode: str, threshold: float, batch: Batch) -> BatchRun:
    """Run a batch in one of the modes."""
    engine = setting.engine(mode, threshold)
    if mode != ALONE:
        return sample_batch(setting, engine, batch)
    single = [sample_batch(setting, engine, batch.select([k])) for k in range(len(batch.prompts))]
    return BatchRun(
        torch.cat([run.samples for run in single]),
        sum(run.network_calls for run in single),
        sum(run.network_samples for run in single),
        sum(run.work for run in single),
        tuple(run.calls[0] for run in single),
        sum(run.seconds for run in single),
        sum(run.processor for run in single),
    )


def solve_batch(setting: BatchSetting, batch: Batch) -> Solution:
    """The nearly exact solution of a batch, sample by sample from the same noise."""
    sampler = Sampler(
        solver=FlowEuler(),
        guidance=setting.guidance,
        num_steps=setting.steps,
        batch_size=len(batch.prompts),
        accelerator=setting.accelerator,
    )
    return solve(
        sampler, setting.model, batch.prompts, seeds=batch.seeds, substeps=setting.substeps
    )


def sample_batch(setting: BatchSetting, engine: Engine, batch: Batch) -> BatchRun:
    """Sample one batch with the own loop."""
    model, solver, device = setting.model, FlowEuler(), setting.device
    if isinstance(model, nn.Module):
        model.to(device)
    with torch.no_grad():
        encoded = model.encode([*batch.prompts, *[""] * len(batch.prompts)])
    cond, uncond = encoded.to(device).chunk(2)
    request = Request(
        latents=sample_noise(model.latent_shape, batch.seeds).to(device),
        cond=cond,
        uncond=uncond,
        schedule=solver.schedule(setting.steps),
        model=model.fingerprint(),
    )
    loop = SamplingLoop(engine, solver, setting.guidance)
    result, took = time_call(lambda: loop.run(model, request))
    trace: Trace = result.trace
    calls = (trace.calls_for(k) / len(setting.guidance.names) for k in range(len(batch.prompts)))
    return BatchRun(
        result.sample.cpu(),
        trace.network_calls,
        trace.network_samples,
        trace.work,
        tuple(calls),
        took.wall,
        took.processor,
    )
