"""Every entry of the troubleshooting page is really produced, and no message is missing.

`TRIGGERS` has one function for each heading; its error must match the heading. Every `raise` of the
diffusers integration must match some heading, so that a new one without an entry fails here.
"""

from __future__ import annotations

import ast
import copy
import gc
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")

import diffusers

from erta_bench.other_caches import bridge
from erta_framework import (
    Call,
    Compute,
    Engine,
    FlowEuler,
    Interval,
    Needs,
    NoGuidance,
    Policy,
    Profile,
    Request,
    SamplingLoop,
    Session,
    SessionInfo,
    Step,
    Traits,
    disable,
    hookimpl,
)
from erta_framework.budgets import MeasuredFront
from erta_framework.config import build_policies, build_run, load_config
from erta_framework.environment import list_accelerators
from erta_framework.errors import ErtaError, UnusedWarning
from erta_framework.files import require_writable
from erta_framework.modules import Select, check_memory, find_cut, find_places, measure
from erta_framework.testing import GaussianMixtureFlow, toy_profile, toy_run
from erta_integrations.diffusers import CAPABILITIES, Support, attach, load, solve_pipeline
from erta_integrations.diffusers._requests import as_sample
from erta_integrations.diffusers.modules import inspect_places
from erta_integrations.diffusers.network import CallArguments, OutputSpec, TrialRunner, read_output
from erta_integrations.diffusers.trunk import TrunkLayout
from erta_integrations.diffusers.trunk._discovery import Block
from erta_integrations.diffusers.trunk._layout import BlockIO, BlockOutput
from erta_integrations.diffusers.trunk._layout_tracer import LayoutTracer
from erta_integrations.diffusers.trunk._signals import compute_modulated_input
from erta_integrations.fabric.jobs import open_folder
from erta_policies.at import At
from erta_policies.easycache import EasyCache
from erta_policies.ertacache import ResidualProfiler, SkipPolicy, TimestepAdjuster
from erta_policies.fastercache import CfgCache
from erta_policies.fitted import FittedProfiler
from erta_policies.lfcache import LFCache
from erta_policies.prompttea import BranchSubstitute
from erta_policies.taylorseer import RefreshInterval
from tiny_pipelines import FAMILIES, flow, unipc

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/how-to/troubleshooting.md"
SOURCES = ROOT / "integrations/erta_integrations/diffusers"
CHECKED = ("CapabilityError", "ConflictError", "ProtocolError")
SOME = SkipPolicy(every=2)
TRIGGERS: dict[str, Callable[[], object]] = {}


def says(heading: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Registers what produces the message of a heading."""

    def register(trigger: Callable[[], object]) -> Callable[[], object]:
        assert heading not in TRIGGERS
        TRIGGERS[heading] = trigger
        return trigger

    return register


def headings() -> list[str]:
    found = re.findall(r"^### `(.+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == len(set(found))
    return found


def pattern(heading: str) -> re.Pattern[str]:
    """A heading as an expression: what stands in braces may be anything."""
    parts = re.split(r"\{[^{}]*\}", heading)
    return re.compile(".+".join(map(re.escape, parts)), re.DOTALL)


# ------------------------------------------------------------------------- toy pipelines
class Pass(nn.Module):
    """A block of one stream."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states.sin()


class Wider(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.cat([hidden_states, hidden_states], -1)


class InPlace(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states.mul_(0.5)
        return hidden_states + 1


class Extra(nn.Module):
    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        return hidden_states.sin(), hidden_states.new_zeros(5)


class Earlier(nn.Module):
    def forward(self, hidden_states: Tensor, skip: Tensor) -> Tensor:
        return hidden_states + skip


class Two(nn.Module):
    """A block of two streams."""

    def forward(self, hidden_states: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        hidden_states, text = hidden_states.sin(), text.sin()
        return hidden_states, text


class TextOnly(nn.Module):
    def forward(self, hidden_states: Tensor, text: Tensor) -> Tensor:
        text = text + hidden_states.mean()
        return text


class Alike(nn.Module):
    def forward(self, hidden_states: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return hidden_states + text, hidden_states - text


class Net(nn.Module):
    """A network whose blocks, order and shapes can be changed between two calls."""

    def __init__(self, *blocks: type[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block() for block in blocks or (Pass, Pass, Pass)])
        self.order: tuple[int, ...] = tuple(range(len(self.blocks)))
        self.length, self.between = 4, 0.0

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, text = hidden_states, torch.ones(1, self.length, 2)
        # a list of its own: what the order is must not be told by the source
        blocks = list(enumerate(self.blocks))
        for place in self.order:
            block = blocks[place][1]
            two = isinstance(block, Two | TextOnly | Alike)
            given = block(x, text) if two else block(x)
            x, text = given if two and isinstance(given, tuple) else (given, text)
            x = x[0] if isinstance(x, tuple) else x
            if self.between:
                x = x + self.between
        return (hidden_states + x.mean()) * timestep


class Alternating(Net):
    def __init__(self) -> None:
        super().__init__()
        self.others = nn.ModuleList([Pass() for _ in range(3)])

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        for block, other in zip(self.blocks, self.others, strict=True):
            hidden_states = other(block(hidden_states))
        return hidden_states * timestep


class TimestepEmbedding(nn.Module):
    def forward(self, timestep: Tensor) -> Tensor:
        return timestep


class Timeless(Net):
    """It embeds its timestep only behind the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = TimestepEmbedding()

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states * self.embedding(timestep)


class Bare(nn.Module):
    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        return hidden_states * timestep


class OneSize(nn.Module):
    """Runs on latents of one size only."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + torch.ones(1, 3, 2)


class Positioned(nn.Module):
    """Takes the positions of its tokens."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, img_ids: Tensor) -> Tensor:
        return hidden_states * timestep + img_ids


class Narrow(nn.Module):
    """Returns two numbers for a whole latent."""

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        return hidden_states.mean((1, 2)).expand(2) * timestep


class Pipe:
    """A pipeline of one network and one scheduler."""

    def __init__(self, transformer: nn.Module | None = None, scheduler: Any = None) -> None:
        self.transformer = transformer if transformer is not None else Net()
        self.scheduler = scheduler if scheduler is not None else flow()

    @property
    def components(self) -> dict[str, Any]:
        return {"transformer": self.transformer, "scheduler": self.scheduler}

    @torch.no_grad()
    def __call__(self, change: Callable[[Any], None] | None = None, steps: int = 4) -> Tensor:
        """One request; `change` is applied to the network after the first step."""
        self.scheduler.set_timesteps(steps)
        x = torch.linspace(-1, 1, 6).reshape(1, 3, 2)
        for time in self.scheduler.timesteps:
            x = self.scheduler.step(self.transformer(x, time), time, x, return_dict=False)[0]
            if change is not None:
                change(self.transformer)
        return x


def trunk(network: nn.Module, change: Any = None, policy: Policy = SOME) -> None:
    pipe = Pipe(network)
    with attach(pipe, [policy], seam="trunk"):
        pipe(change)


def assign(**values: Any) -> Callable[[Any], None]:
    def change(network: Any) -> None:
        for name, value in values.items():
            setattr(network, name, value)

    return change


def asking(*names: str, scribble: bool = False) -> Policy:
    """A policy that asks for signals, and may write into them."""

    class Asks(Policy):
        traits = Traits(
            requires=frozenset(f"signal:{name}" for name in names), memory=Needs(evaluations=1)
        )

        @hookimpl
        def decide(self) -> Compute:
            return Compute("asks")

        @hookimpl(wrapper=True)
        def forward(self, call: Call) -> Iterator[None]:
            for name in names:
                value = call.feature(name)
                if scribble and call.history:
                    value.add_(1.0)
                    call.feature(name)
            return (yield)

    return Asks()


# ------------------------------------------------------------------------------- attaching
@says("{pipeline} has no scheduler; a diffusers pipeline is needed")
def _() -> None:
    attach(object(), [])


@says("{pipeline} has no network {asked}; name it with networks=[...]")
def _() -> None:
    attach(Pipe(nn.Linear(1, 1)), [], networks=["unet"])


@says("{name} ({class}) has no enable_cache, so {cache} could be switched on but not off again")
def _() -> None:
    bridge(Pipe(), "FirstBlockCache")


@says("{name} ({class}) has an engine attached already")
def _() -> None:
    pipe = Pipe()
    with attach(pipe, [SOME]), attach(pipe, [SOME]):
        pass


@says("the scheduler ({class}) is driven by another attachment")
def _() -> None:
    pipe = Pipe()
    with attach(pipe, [SOME]), attach(Pipe(scheduler=pipe.scheduler), [SOME]):
        pass


@says("{name} ({class}) was compiled in place with module.compile()")
def _() -> None:
    pipe = Pipe()
    pipe.transformer.compile(backend="eager")
    attach(pipe, [SOME])


@says("{name} ({class}) was compiled in place after attach")
def _() -> None:
    pipe = Pipe()
    with attach(pipe, [SOME]):
        pipe.transformer.compile(backend="eager")
        pipe()


@says("{block} of {network} was compiled after attach")
def _() -> None:
    pipe = Pipe()
    with attach(pipe, [SOME], seam="trunk"):
        for block in pipe.transformer.blocks:
            block.compile(backend="eager")
        pipe()


@says("{policy} requires {signals}, which {networks} does not offer")
def _() -> None:
    attach(Pipe(), [asking("modulated_input")], seam="trunk")


# ----------------------------------------------------------------------------- schedulers
@says(
    "{policy} leaves out one of two guidance branches, but {network} ({class}) is distilled for "
    "guidance"
)
def _() -> None:
    attach(FAMILIES["flux2"].build(), [CfgCache()])


@says("{scheduler} cannot be accelerated: {reason}")
def _() -> None:
    import diffusers

    refused = [n for n, found in CAPABILITIES.items() if found.support is Support.REFUSED]
    name = next(n for n in refused if hasattr(diffusers, n))
    scheduler = getattr(diffusers, name)
    attach(Pipe(scheduler=scheduler.__new__(scheduler)), [SOME])


@says("{scheduler} has no {step or set_timesteps}; a diffusers scheduler is needed")
def _() -> None:
    attach(Pipe(scheduler=SimpleNamespace(step=print)), [SOME])


@says("{policy} requires {capabilities}, which {solver or scheduler} does not offer")
def _() -> None:
    attach(Pipe(scheduler=unipc()), [SOME, TimestepAdjuster(phi=(0.9,) * 6)])


@says(
    "{policy} compares runs of the same sample, which must then differ in nothing else, but "
    "{solver or scheduler} draws new noise"
)
def _() -> None:
    import diffusers

    attach(Pipe(scheduler=diffusers.DDPMScheduler()), [FittedProfiler()])


# ------------------------------------------------------------------------ during a request
@says("the {part} of {pipeline} was replaced after attach")
def _() -> None:
    pipe = Pipe()
    with attach(pipe, [SOME]):
        pipe.scheduler = flow()
        pipe()


@says(
    "{pipeline} set the timesteps of {scheduler} while a request of {pipeline} runs on the same "
    "scheduler"
)
def _() -> None:
    pipe = Pipe()
    with attach(pipe, [SOME]):
        pipe(lambda _: pipe())


@says(
    "{network} ({class}) was called in a thread that runs no pipeline while a request of "
    "{pipeline} runs in another"
)
def _() -> None:
    pipe = Pipe()
    call = partial(pipe.transformer, torch.ones(1, 3, 2), torch.tensor(3.0))

    def beside(_: Any) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(int).result()  # the thread is there before it works
            future = pool.submit(call)
            wait([future])
        future.result()

    with attach(pipe, [SOME]):
        pipe(beside)


@says("{pipeline} called {network} ({branch}) at another time before it called {scheduler}.step")
def _() -> None:
    pipe = Pipe()
    with attach(pipe, [SOME]), torch.no_grad():
        pipe.scheduler.set_timesteps(4)
        for time in pipe.scheduler.timesteps:
            pipe.transformer(torch.ones(1, 3, 2), time)


@says("request {number}: the pipeline steps index {i} of its timesteps, the network was called for")
def _() -> None:
    pipe = Pipe()
    with attach(pipe, [SOME]), torch.no_grad():
        pipe.scheduler.set_timesteps(4)
        x, times = torch.ones(1, 3, 2), pipe.scheduler.timesteps
        pipe.scheduler.step(pipe.transformer(x, times[0]), times[1], x)


@says("{value} is {type}; a tensor or list of tensors is needed")
def _() -> None:
    pipe = Pipe()
    with attach(pipe, [SOME]):
        pipe.scheduler.set_timesteps(4)
        pipe.transformer("latents", pipe.scheduler.timesteps[0])


@says("{value} is a list of tensors of unequal shapes")
def _() -> None:
    pipe = Pipe()
    with attach(pipe, [SOME]):
        pipe.scheduler.set_timesteps(4)
        latents = [torch.ones(1, 3, 2), torch.ones(1, 4, 2)]
        pipe.transformer(latents, pipe.scheduler.timesteps[0])


@says(
    "{network} ({class}) returns {shape} for latents {shape}, so there is no residual, "
    "and {policies} compares latents"
)
def _() -> None:
    pipe = Pipe(Narrow())
    with attach(pipe, [EasyCache(warmup=1)]):
        pipe()


def run_trial(
    spec: OutputSpec,
    x: Tensor,
    at: float | None = None,
    network: nn.Module | None = None,
    now: float = 1000.0,
    **arguments: Any,
) -> None:
    """A trial in a call whose latents are `[1, 3, 2]`, at timestep `now` of a pipeline."""
    network = Bare() if network is None else network
    latents = torch.ones(1, 3, 2)
    everything = {"hidden_states": latents, **arguments}
    call = CallArguments(network.forward, (), everything, everything, None)
    passed = {1000.0: 1, now: 1}
    TrialRunner("transformer", network, call, latents, spec, passed, now).run(x, at)


def make_spec(*shape: int) -> OutputSpec:
    return read_output(torch.zeros(shape), torch.ones(1, 3, 2), "transformer")[1]


@says("no trial of {network} ({class}): its output has another shape than its latents")
def _() -> None:
    run_trial(make_spec(2), torch.ones(1, 3, 2))


@says(
    "{policy} runs {network} ({class}) on smaller latents, but this network takes the positions "
    "of its tokens in {argument}"
)
def _() -> None:
    attach(Pipe(Positioned()), [LFCache()])


@says(
    "no trial of {network} ({class}) on latents of {shape}: the pipeline gives {argument}, the "
    "features of a control network"
)
def _() -> None:
    run_trial(make_spec(1, 3, 2), torch.ones(1, 2, 2), controlnet_block_samples=[torch.ones(1)])


@says(
    "no trial of {network} ({class}) on latents of {shape}, where this pipeline gives {shape}: "
    "the network {answer}"
)
def _() -> None:
    run_trial(make_spec(1, 3, 2), torch.ones(1, 5, 2), network=OneSize())


@says(
    "no trial of {network} ({class}) at timestep {timestep}: how this pipeline passes a timestep "
    "to its network is known only for"
)
def _() -> None:
    run_trial(make_spec(1, 3, 2), torch.ones(1, 3, 2), 500.0, timestep=1)


class TryPlan(Policy):
    """Tries a plan for places that nobody selected."""

    traits = Traits(requires=frozenset({"trial", "trial:places"}))

    @hookimpl
    def decide(self, step: Step, call: Call) -> Compute:
        call.trial(plan=lambda parts: {})
        return Compute("tried")


@says(
    "no trial with a plan: no policy owns places in {network}; a policy that asks for one selects "
    "some"
)
def _() -> None:
    pipe = Pipe()
    with attach(pipe, [TryPlan()]):
        pipe()


@says("no trial of {network} ({class}) at another timestep: its forward takes none")
def _() -> None:
    run_trial(make_spec(1, 3, 2), torch.ones(1, 3, 2), 1000.0, Pass(), now=500.0)


@says("{network} ({class}): a hook was set on {module} since the request began")
def _() -> None:
    pipe = Pipe()
    with attach(pipe, [SOME]):
        pipe(lambda network: network.blocks[0].register_forward_hook(lambda *_: None))


class Store:
    """An attention processor that keeps what it computes."""

    seen: Tensor | None = None


@says(
    "{network} ({class}): its attention processor {processor} keeps what it computes for others "
    "to read"
)
def _() -> None:
    class Attends(Net):
        def __init__(self) -> None:
            super().__init__()
            self.processor = Store()

        def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
            self.processor.seen = hidden_states
            return super().forward(hidden_states, timestep)

    pipe = Pipe(Attends())
    with attach(pipe, [SOME]):
        pipe()


@says(
    "{network} ({class}): {argument} requires a gradient, and a reused step has none through the "
    "network"
)
def _() -> None:
    pipe = Pipe()
    x = torch.ones(1, 3, 2, requires_grad=True)
    with attach(pipe, [SOME]):
        pipe.scheduler.set_timesteps(3)
        for time in pipe.scheduler.timesteps:
            pipe.scheduler.step(pipe.transformer(x, time), time, x)


@says('{pipeline} gave {shape} for output_type="pt"')
def _() -> None:
    as_sample(torch.zeros(2, 3, 4, 4), "WanPipeline")


@says("the pipeline {source} cannot be loaded")
def _() -> None:
    with TemporaryDirectory() as folder:
        index = '{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}'
        Path(folder, "model_index.json").write_text(index, encoding="utf-8")
        load(folder, accelerator="cpu")


# ------------------------------------------------------------------------ the exact solution
NOISES: dict[str, Any] = {"beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}


def solve_under(scheduler: Any, request: Callable[[Any], Any] = lambda pipe: pipe()) -> None:
    pipe = Pipe(scheduler=scheduler)
    solve_pipeline(pipe, lambda: request(pipe), substeps=2)


@says("there is no exact solution, because {reason}")
def _() -> None:
    solve_under(diffusers.EulerAncestralDiscreteScheduler(**NOISES))


@says(
    "what {scheduler} integrates is not known (its network predicts {prediction}), so there is no "
    "exact solution"
)
def _() -> None:
    solve_under(diffusers.EDMEulerScheduler())


@says("the first latents of {scheduler} are noise without signal")
def _() -> None:
    options = {**NOISES, "clip_sample": False, "rescale_betas_zero_snr": True}
    solve_under(diffusers.DDIMScheduler(**options))


@says("step {number} of {scheduler} goes from {sigma} to {sigma} at the timestep {timestep}")
def _() -> None:
    solve_under(diffusers.HeunDiscreteScheduler(**NOISES))


@says("{scheduler} has no alphas_cumprod, so the timesteps between its own are not known")
def _() -> None:
    scheduler = diffusers.EulerDiscreteScheduler(**NOISES)
    del scheduler.alphas_cumprod
    solve_under(scheduler)


@says("the scheduler ({class}) has policies attached; solve outside that")
def _() -> None:
    pipe = Pipe()
    with attach(pipe, [SOME]):
        solve_pipeline(pipe, pipe, substeps=2)


@says("the pipeline made {number} of the {number} steps of a finer grid of {scheduler}")
def _() -> None:
    solve_under(flow(), lambda _: None)


@says(
    "the pipeline stepped {scheduler} at the timestep {timestep}, where a finer grid has "
    "{timestep} at step {number}"
)
def _() -> None:
    def step_late(pipe: Pipe) -> None:
        pipe.scheduler.set_timesteps(4)
        x, time = torch.ones(1, 3, 2), pipe.scheduler.timesteps[1]
        pipe.scheduler.step(x, time, x)

    solve_under(flow(), step_late)


@says(
    "the output {shape} is not of the shape of the latents {shape}, so the exact solution is not "
    "known"
)
def _() -> None:
    def step_wider(pipe: Pipe) -> None:
        pipe.scheduler.set_timesteps(4)
        x = torch.ones(1, 3, 2)
        pipe.scheduler.step(torch.ones(1, 6, 2), pipe.scheduler.timesteps[0], x)

    solve_under(flow(), step_wider)


# ------------------------------------------------------------------------------- the trunk
@says("{network} is compiled as a whole, which leaves no blocks to skip")
def _() -> None:
    attach(Pipe(torch.compile(Net(), backend="eager")), [SOME], seam="trunk")


@says("{network} has no trunk: its forward runs no list of blocks (nn.ModuleList)")
def _() -> None:
    attach(Pipe(Bare()), [SOME], seam="trunk")


@says("{network} has no single trunk: its {lists} alternate")
def _() -> None:
    attach(Pipe(Alternating()), [SOME], seam="trunk")


@says("{network} has no trunk that can be skipped: its {blocks} take the outputs of earlier blocks")
def _() -> None:
    attach(Pipe(Net(Earlier)), [SOME], seam="trunk")


@says("{network} changes what passes from {block} to {block}")
def _() -> None:
    network = Net()
    network.between = 0.1
    trunk(network)


@says("{network} ran none of its {lists}")
def _() -> None:
    network = Net()
    network.order = ()
    trunk(network)


@says("{network}: {block} returns nothing of the shape of what it takes")
def _() -> None:
    trunk(Net(Wider))


@says("{network} writes into {stream} in place, so its residual is lost")
def _() -> None:
    trunk(Net(InPlace))


@says("{network}: {block} returns a tensor of shape {shape} that matches nothing it takes")
def _() -> None:
    trunk(Net(Extra))


@says("{network}: {block} does not return {stream}, so there is no residual")
def _() -> None:
    trunk(Net(Two, TextOnly))


@says("{block} ({class}) returns an output that may match {streams}, all of shape")
def _() -> None:
    network = Net(Alike)
    network.length = 3
    trunk(network)


@says("{network} ran {block} out of the order of this branch's first call")
def _() -> None:
    trunk(Net(), assign(order=(1, 0, 2)))


@says("{network} ran {number} of the {number} blocks that it ran in this branch before")
def _() -> None:
    trunk(Net(), assign(order=(0, 1)))


@says("{network} was given {stream} of shape {shape} in branch {branch}, before {shape}")
def _() -> None:
    trunk(Net(Two, Two), assign(length=5))


class Guided(Pipe):
    """Two branches a step, of texts that differ in length."""

    @torch.no_grad()
    def __call__(self, change: Callable[[Any], None] | None = None, steps: int = 4) -> Tensor:
        self.scheduler.set_timesteps(steps)
        x = torch.linspace(-1, 1, 6).reshape(1, 3, 2)
        for time in self.scheduler.timesteps:
            for length in (4, 5):
                self.transformer.length = length
                out = self.transformer(x, time)
            x = self.scheduler.step(out, time, x, return_dict=False)[0]
        return x


@says(
    "{network} has {stream} of shape {shape} in branch {branch} and {shape} in the branch "
    "that replaces it"
)
def _() -> None:
    lends = BranchSubstitute(codebook=(0.1,) * 4, threshold=9.0, branch="call1", stands_in="call0")
    pipe = Guided(Net(Two, Two))
    with attach(pipe, [lends], seam="trunk"):
        pipe()


class Wordless(nn.Module):
    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Any = None
    ) -> Tensor:
        return hidden_states * timestep


@says("{network} was given {value} as {argument}, not text embeddings [B, tokens, D]")
def _() -> None:
    pipe = Pipe(Wordless())
    with attach(pipe, [asking("prompt")]):
        pipe()


@says("{block} never ran its attention; no modulated input")
def _() -> None:
    compute_modulated_input(Pass(), (torch.ones(1, 2),), {})


@says("{network} did not embed its timestep before its blocks")
def _() -> None:
    trunk(Timeless(), policy=asking("timestep_embedding"))


@says("probe:{depth} is what block {depth} returns, but {network} ran {number} blocks as one trunk")
def _() -> None:
    network = Net()
    network.order = (0,)
    trunk(network, policy=asking("probe:2"))


@says("probe:{depth} is not there: {block} of {network} does not return {stream}")
def _() -> None:
    one, two = Block("blocks", 0, Two()), Block("blocks", 1, TextOnly())
    tracer = LayoutTracer("Net", frozenset({2}))
    both = (("hidden_states",), ("text",))
    blocks = [BlockIO(one, ("hidden_states", "text"), False, both, False)]
    blocks += [BlockIO(two, ("text",), True, (("text",),), False)]
    probed = {2: BlockOutput.of(torch.ones(1, 4, 2))}
    tracer._check_probes(TrunkLayout(blocks=blocks, probed=probed))


@says("{network} writes into what {block} returned, so probe:{depth} is lost")
def _() -> None:
    trunk(Net(), policy=asking("probe:1", scribble=True))


# ------------------------------------------------------------------- chosen without a name
class Turbo(Pipe):
    """A pipeline whose name says that it makes few steps."""

    name_or_path = "owner/sd-turbo"


@says("{pipeline} makes only a few steps, as {sign} shows, and nothing is chosen for such a model")
def _() -> None:
    attach(Turbo())


@says("{number} steps of {pipeline} are too few, and nothing is chosen for fewer than {least}")
def _() -> None:
    pipe = Pipe()
    with attach(pipe):
        pipe()


@says("nothing is enabled on this {pipeline}; erta.disable takes the pipeline that erta.enable got")
def _() -> None:
    disable(Pipe())


@says("a tier is a plan that was measured, and {policies} holds no profile")
def _() -> None:
    with attach(Pipe(), "taylorseer") as run, run.using(calls=5):
        pass


@says(
    "{number} network calls were asked for, and {profile} holds measured plans of {least} to {most}"
)
def _() -> None:
    with attach(Pipe(), [ResidualProfiler()]) as run:
        run._driver.parts.pipe()
    profile = run.profile()
    front = MeasuredFront(
        steps=((0, 1, 3),),
        refined=((0, 1, 3),),
        predicted=(0.1,),
        psnr=(30.0,),
        psnr_std=(0.0,),
        refined_psnr=(30.0,),
        seconds=(1.0, 2.0),
        batch=1,
        device="cpu",
        planner="skip_policy",
        policies="",
        spent=0,
        unit="skip_policy",
    )
    policy = SkipPolicy(profile=front.added_to(profile), calls=2)
    with attach(Pipe(), policy) as run, run.using(calls=2):
        pass


# -------------------------------------------------------------------------------- warnings
@says("the attachment to {pipeline} was never entered")
def _() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pipe = Pipe()
        run = attach(pipe, [SOME])
        pipe()
        del run
        gc.collect()
    raise said[0].message  # type: ignore[misc]


@says(
    "{network} ({class}) of {pipeline} was called {number} times, by {callers}, but no call "
    "belonged to a request"
)
def _() -> None:
    pipe = Pipe()
    with attach(pipe, [SOME]):
        Pipe(pipe.transformer)()


@says(
    "no network of {pipeline} was called while it was attached, but a deep copy of {network} "
    "was made"
)
def _() -> None:
    pipe = Pipe()
    with attach(pipe, [SOME]):
        copy.deepcopy(pipe)()


class Reshaping(Pipe):
    """The latents have another shape at every step."""

    @torch.no_grad()
    def __call__(self, *_: Any) -> None:  # type: ignore[override]
        self.scheduler.set_timesteps(4)
        for size, time in enumerate(self.scheduler.timesteps):
            x = torch.ones(1, 3, 2 + size)
            self.scheduler.step(self.transformer(x, time), time, x)


@says("no policy could reuse anything in {number} requests of {pipeline}")
def _() -> None:
    pipe = Reshaping(Bare())
    with attach(pipe, [SOME]):
        pipe()


@says("nothing was reused in {number} requests of {pipeline}, although {policies} may reuse")
def _() -> None:
    pipe = Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with attach(pipe, [EasyCache(threshold=0.0, warmup=1)]):
            pipe()


# ---------------------------------------------------------------------------- configurations
@says("{place} is {value}; the most is {bound}")
def _() -> None:
    build_run({"steps": 10**9})


@says("{place} is {value}; write a finite number")
def _() -> None:
    load_config(None, ["solver.flow_euler.shift=.nan"])


@says("{file} has more than {number} keys and values with its aliases written out")
def _() -> None:
    aliases = [f"&k{i} [{', '.join([f'*k{i - 1}'] * 9)}]" for i in range(1, 9)]
    load_config(None, [f"prompts=[&k0 [x, x], {', '.join(aliases)}]"])


@says("{file} has lists and mappings more than {number} levels deep")
def _() -> None:
    load_config(None, ["prompts=" + "[" * 99])


@says("cannot read the configuration: {place} is {value}, which reads the environment variable")
def _() -> None:
    load_config(None, ["output=${oc.env:HOME}"])


@says("cannot read the configuration: {place} is {value}, which names a resolver")
def _() -> None:
    load_config(None, ["output=${oc.create:x}"], allow_env=True)


@says("fabric.accelerator is {name}, which this machine does not have")
def _() -> None:
    absent = next(name for name in ("mps", "cuda") if name not in list_accelerators())
    load_config(None, [f"fabric.accelerator={absent}"])


# -------------------------------------------------------------- places inside a network
@says("{network} has no places whose outputs can be kept")
def _() -> None:
    find_places(nn.Linear(2, 2))


@says(
    "{policy} selects {place} of {network}, but at the trunk seam the blocks are answered for "
    "as one"
)
def _() -> None:
    blocks = At(sites=Select(kind=("block",)), when=RefreshInterval(interval=2))
    attach(FAMILIES["wan-euler"].build(), [blocks], seam="trunk")


@says("{network} cannot be cut: {reason}")
def _() -> None:
    find_cut(FAMILIES["wan-euler"].build().transformer, 0)


@says("{network} has no skip {branch} to cut at; give a branch from 0 to {number}")
def _() -> None:
    find_cut(FAMILIES["unconditional"].build().unet, 12)


@says("{networks} of {pipeline} did not run in this request")
def _() -> None:
    family = FAMILIES["wan22"]
    size = {**family.inputs(1), **family.size}
    inspect_places(family.build(), num_inference_steps=1, output_type="latent", **size)


@says("the costs of {network} cannot be measured: it {reason} in the measured run")
def _() -> None:
    measure(nn.Linear(2, 2), lambda: None)


@says("{policy} would keep {size} of outputs, and memory is {size}")
def _() -> None:
    check_memory(3 * 2**30, "2GiB", "a policy")


# --------------------------------------------------------------------- policies and profiles
@says("{name} of {distribution} {version} ({place}) failed to import")
def _() -> None:
    with TemporaryDirectory() as folder:
        info = Path(folder, "erta_sick-1.0.dist-info")
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: erta-sick\nVersion: 1.0\n")
        points = "[erta_framework.policies]\nsick = erta_sick_module:Sick\n"
        (info / "entry_points.txt").write_text(points)
        Path(folder, "erta_sick_module.py").write_text("raise SystemExit(1)\n")
        sys.path.insert(0, folder)
        try:
            build_policies(["sick"])
        finally:
            sys.path.remove(folder)


@says("no installed distribution provides {name} in {group}")
def _() -> None:
    build_policies(["eazycache"])


@says("the interval has one owner, but adjust_interval is implemented by {policy} and {policy}")
def _() -> None:
    Engine([TimestepAdjuster(phi=(0.9,) * 6), TimestepAdjuster(phi=(0.8,) * 6)])


@says("{policy} decides for each sample of a batch, {policy} moves the interval")
def _() -> None:
    Engine([EasyCache(), TimestepAdjuster(phi=(0.9,) * 6)])


def info(**changes: Any) -> SessionInfo:
    given = SessionInfo(
        (1.0, 0.5, 0.0), (1000.0, 500.0), (1, 2), torch.float32, torch.device("cpu")
    )
    return replace(given, **changes)


@says("{verb} is not allowed now: the session of request {name} is {stage}, it must be {stage}")
def _() -> None:
    with Session(Engine([]), info()) as session:
        session.settle()


@says("{policy} raised {error} in hook {hook}")
def _() -> None:
    class Broken(Policy):
        @hookimpl
        def pre_step(self) -> None:
            raise ZeroDivisionError

    with Session(Engine([Broken()]), info()) as session:
        session.begin(Interval(0, 1.0, 0.5, 1000.0, 500.0))


class Overflowing:
    """A network so far from its latents that the residual overflows."""

    def __call__(self, x: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        return torch.full_like(x, -3e38)


@says("the reused output of branch {branch} at step {number} is not finite")
def _() -> None:
    loop = SamplingLoop(Engine([SkipPolicy(steps=(0,))]), FlowEuler(), NoGuidance())
    request = Request(
        latents=torch.full((1, 1, 2, 2), 3e38),
        cond=torch.zeros(1, 1),
        schedule=FlowEuler().schedule(3),
    )
    loop.run(Overflowing(), request).trace.raise_if_nonfinite()


def interrupt(pipe: Any, *_: Any) -> dict[str, Any]:
    pipe._interrupt = True
    return {}


@says(
    "nothing to merge: a profile needs every step of a request, and these stopped before their "
    "last one"
)
def _() -> None:
    family = FAMILIES["flux"]
    pipe = family.build()
    with attach(pipe, "residual_profiler") as run:
        family.run(pipe, callback_on_step_end=interrupt)
    run.profile()


@says("{policy} observes whole trajectories, this one starts at step {number}")
def _() -> None:
    family = FAMILIES["flux-img2img"]
    pipe = family.build()
    with attach(pipe, "residual_profiler"):
        family.run(pipe)


@says("keep_traces is {number}, it must be at least 1")
def _() -> None:
    attach(Pipe(), [SOME], keep_traces=0)


@says("this {kind} profile was calibrated for another run")
def _() -> None:
    profile = toy_profile(ResidualProfiler())
    toy = GaussianMixtureFlow((3, 2, 4, 4))
    policies = build_policies([{"ertacache": {"profile": profile, "calls": 3}}])
    x = torch.zeros(1, 3, 2, 4, 4)
    request = Request(latents=x, cond=toy.encode([""]), schedule=FlowEuler().schedule(5))
    SamplingLoop(Engine(policies), FlowEuler(), NoGuidance()).run(toy, request)


@says("{place}: unknown key {name}")
def _() -> None:
    build_policies([{"easycache": {"treshold": 0.1}}])


def toy_budget(profile: Profile, **options: Any) -> None:
    """A request of the toy under a planned schedule."""
    toy_run(build_policies([{"planned_schedule": {"profile": profile, **options}}]))


@says("a budget got {keys}; give exactly one of")
def _() -> None:
    build_policies([{"ertacache": {"profile": "x", "budget": {"calls": 20, "psnr": 30}}}])


@says("a budget in psnr needs plans that were measured with {unit}")
def _() -> None:
    toy_budget(toy_profile(ResidualProfiler()), budget={"psnr": 30.0})


@says("a budget in seconds needs plans that were timed on this device")
def _() -> None:
    profile = measured_elsewhere().untimed().added_to(toy_profile(ResidualProfiler()))
    toy_budget(profile, budget={"seconds": 0.5})


@says("more network calls took no longer when this profile was measured")
def _() -> None:
    busy = replace(measured_elsewhere(), seconds=(0.4, 0.3, 1.0))
    toy_budget(busy.added_to(toy_profile(ResidualProfiler())), budget={"seconds": 0.5})


@says("a budget in seconds was measured on {device} with batches of {number}")
def _() -> None:
    profile = measured_elsewhere().added_to(toy_profile(ResidualProfiler()))
    toy_budget(profile, budget={"seconds": 0.5})


def measured_elsewhere() -> MeasuredFront:
    """Two plans of the toy, timed on a device that is not here."""
    return MeasuredFront(
        steps=((0, 5, 9), (0, 3, 6, 9)),
        refined=((0, 5, 9), (0, 3, 6, 9)),
        predicted=(0.2, 0.1),
        psnr=(20.0, 25.0),
        psnr_std=(1.0, 1.0),
        refined_psnr=(20.0, 25.0),
        seconds=(0.3, 0.4, 1.0),
        batch=2,
        device="another device",
        planner="planned_schedule",
        policies="planned_schedule",
        spent=17,
        unit="planned_schedule",
    )


@says("this {kind} profile has no {statistic}, which the edge cost {cost} needs")
def _() -> None:
    profile = toy_profile(ResidualProfiler())
    kept = {name: value for name, value in profile.statistics.items() if name != "velocity"}
    toy_budget(replace(profile, statistics=kept), budget={"calls": 4}, cost="forecast")


def saved(profile: Profile, change: Callable[[bytes], bytes] = bytes) -> None:
    """Saved, changed and read by a policy."""
    with TemporaryDirectory() as folder:
        path = profile.save(Path(folder, "p.safetensors"))
        path.write_bytes(change(path.read_bytes()))
        Engine([SkipPolicy(profile=path, calls=3)])


@says("{path} is not a readable safetensors file")
def _() -> None:
    saved(toy_profile(ResidualProfiler()), lambda data: data[:-1])


def with_ratio(change: Callable[[Tensor], Tensor]) -> Profile:
    profile = toy_profile(ResidualProfiler())
    ratio = change(profile.statistics["ratio"].clone())
    return replace(profile, statistics={**profile.statistics, "ratio": ratio})


@says("{entry} of this {kind} profile is {value} at {place}, it must be")
def _() -> None:
    saved(with_ratio(lambda ratio: ratio.log()))


@says(
    "{entry} of this {kind} profile recurs every {number} steps: another cache skipped the steps "
    "between"
)
def _() -> None:
    changes = torch.tensor([12.0, 1.0, 1.0] * 10)
    ratio, facts = torch.ones(1, 30, 30).double(), {"num_steps": "30", "branches": "cond"}
    ratio[0].diagonal(1)[:] = changes[1:]
    one = torch.ones(1, 30).double()
    held = {"samples": one, "elements": one, "ratio": ratio}
    held |= dict.fromkeys(("phi_velocity", "phi_difference"), torch.ones(1, 30, 30).double())
    held |= dict.fromkeys(("v", "vv", "e", "ee", "ve"), torch.ones(1, 30, 30, 2).double())
    saved(Profile("residual_profiler", facts, held, samples=1))


@says("{policy} got NaN or infinity from the network for sample {numbers} of {number}")
def _() -> None:
    network = GaussianMixtureFlow((3, 2, 4, 4))
    x = torch.full((1, 3, 2, 4, 4), torch.nan)
    request = Request(latents=x, cond=network.encode([""]), schedule=FlowEuler().schedule(5))
    SamplingLoop(Engine([ResidualProfiler()]), FlowEuler(), NoGuidance()).run(network, request)


# -------------------------------------------------------------------------------------- files
@says("cannot write the {what} {path}")
def _() -> None:
    with TemporaryDirectory() as folder:
        Path(folder, "file").touch()
        require_writable(Path(folder, "file", "trace.jsonl"))


@says("{folder} holds a job already; give --resume to continue it, or another --output")
def _() -> None:
    with TemporaryDirectory() as folder:
        for _ in range(2):
            open_folder(Path(folder), {}, resume=False)


@says("cannot read {path}: {problem}; give another --output, or put back the file of this job")
def _() -> None:
    with TemporaryDirectory() as folder:
        open_folder(Path(folder), {}, resume=False)
        Path(folder, "samples").mkdir()
        Path(folder, "job.json").write_text("{", encoding="utf-8")
        open_folder(Path(folder), {}, resume=True)


# ---------------------------------------------------------------------------------- tests
def template(node: ast.expr, functions: dict[str, ast.expr]) -> str:
    """The message of a `raise`, with a NUL for whatever is filled in."""
    match node:
        case ast.Constant():
            return str(node.value)
        case ast.JoinedStr():
            return "".join(template(part, functions) for part in node.values)
        case ast.BinOp(op=ast.Add()):
            return template(node.left, functions) + template(node.right, functions)
        case ast.Call(func=ast.Name(id=name)) if name in functions:
            return template(functions[name], functions)
        case ast.Subscript(value=ast.Attribute(attr="broken")):
            return template(functions["explain_broken_link"], functions)  # `LayoutTracer` keeps it
    return "\0"


def raised() -> list[tuple[str, str]]:
    """Place and message of every `raise` of the integration's own errors."""
    files = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES.rglob("*.py")}
    functions = {
        node.name: last.value
        for tree in files.values()
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and isinstance(last := node.body[-1], ast.Return)
        and isinstance(last.value, ast.JoinedStr)
    }
    return [
        (f"{path.relative_to(SOURCES)}:{node.lineno}", template(node.exc.args[0], functions))
        for path, tree in sorted(files.items())
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id in CHECKED
    ]


def test_every_heading_has_what_produces_it() -> None:
    assert set(headings()) == set(TRIGGERS)


def test_every_error_of_the_integration_has_an_entry() -> None:
    found, known = raised(), [pattern(heading) for heading in headings()]
    assert len(found) > 30
    missing = [place for place in found if not any(entry.search(place[1]) for entry in known)]
    assert not missing, "add an entry to docs/how-to/troubleshooting.md and a trigger here"


def test_every_entry_has_a_cause_and_a_remedy() -> None:
    entries = re.split(r"^### .*$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    for entry in entries:
        assert re.search(
            r"^\*\*Cause\.\*\* .+\n\n?\*\*Remedy\.\*\* ", entry, re.MULTILINE | re.DOTALL
        )


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers
@pytest.mark.parametrize("heading", TRIGGERS)
def test_the_message_is_really_produced(heading: str) -> None:
    with pytest.raises((ErtaError, UnusedWarning)) as caught:
        TRIGGERS[heading]()
    assert pattern(heading).search(str(caught.value)), str(caught.value)
