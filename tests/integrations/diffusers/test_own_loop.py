"""The engine cannot tell the own loop from a pipeline: both give the same latents, bit for bit.

What the network is given beside latents and time is taken from a run of the pipeline; how its
outputs are combined, in which unit it is told the time and how the scheduler steps is written down
here, so that the loop shares no code with the pipeline.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_framework import Engine, FlowEuler, Interval, Policy, Request, SamplingLoop, Schedule
from erta_framework.sampling.guidance import Branch
from erta_framework.sampling.solvers import ComposedSolver
from erta_integrations.diffusers import attach
from erta_integrations.diffusers.network import (
    bind_arguments,
    find_latents,
    find_timestep,
    unwrap_class,
)
from erta_integrations.diffusers.pipeline._prediction import read_prediction
from erta_integrations.diffusers.pipeline._schedulers import read_schedule
from erta_policies.ertacache import SkipPolicy, TimestepAdjuster
from tiny_pipelines import FAMILIES, Family

STEPS = 6
SKIP = SkipPolicy(steps=(0, 2, 5))
PHI = TimestepAdjuster(phi=(0.9, 0.7, 1.0, 0.8, 0.9, 1.0))
Outputs = list[Tensor]


# ------------------------------------------------------------------------------ guidance
def cfg(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance."""
    return uncond + scale * (cond - uncond)


def normed(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Guidance scaled back to the norm of the conditional prediction."""
    guided = cfg(cond, uncond, scale)
    return guided * (cond.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))


def alone(outputs: Outputs) -> Tensor:
    """No guidance."""
    return outputs[0]


def pair(scale: float, rule: Callable[..., Tensor] = cfg) -> Callable[[Outputs], Tensor]:
    """The conditional call, then the unconditional one."""
    return lambda outputs: rule(outputs[0], outputs[1], scale)


def halves(scale: float) -> Callable[[Outputs], Tensor]:
    """One call on a doubled batch, the unconditional half first."""
    return lambda outputs: cfg(*outputs[0].chunk(2)[::-1], scale)


def negated(rule: Callable[[Outputs], Tensor]) -> Callable[[Outputs], Tensor]:
    """The network predicts the velocity of the other direction."""
    return lambda outputs: -rule(outputs)


def negated_first(rule: Callable[[Outputs], Tensor]) -> Callable[[Outputs], Tensor]:
    """The same, turned round before guidance."""
    return lambda outputs: rule([-output for output in outputs])


def conditional_first(outputs: Outputs) -> Tensor:
    """Z-Image's own formula, the conditional half first."""
    cond, uncond = outputs[0].chunk(2)
    return cond + 5.0 * (cond - uncond)


def with_skipped_layers(outputs: Outputs) -> Tensor:
    """Guidance, and where a third output is there, away from the network without some layers."""
    uncond, cond = outputs[0].chunk(2)
    guided = cfg(cond, uncond, 7.0)
    return guided if len(outputs) == 1 else guided + (cond - outputs[1]) * 2.8


@dataclass(frozen=True)
class ByFormula:
    """Guidance for the own loop: the branches by name, and how their outputs combine.

    A branch's condition is its place among the calls that were recorded.
    """

    calls: tuple[tuple[str, int], ...]
    formula: Callable[[Outputs], Tensor]
    only: Mapping[str, Sequence[int]]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.calls)

    def branches(
        self, cond: Tensor, uncond: Tensor | None, index: int, num_steps: int
    ) -> tuple[Branch, ...]:
        return tuple(
            Branch(name, torch.full((copies, 1), place), copies)
            for place, (name, copies) in enumerate(self.calls)
            if index in self.only.get(name, (index,))
        )

    def combine(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return self.formula(list(outputs.values()))


# -------------------------------------------------------------------------------- solvers
@dataclass(frozen=True, kw_only=True)
class SingleEuler(FlowEuler):
    """Euler with the step size rounded as diffusers does: both sigmas to float32 first."""

    def step(self, x: Tensor, output: Tensor, interval: Interval, state: Any) -> tuple[Tensor, Any]:
        return x + (torch.tensor(interval.end) - torch.tensor(interval.start)) * output, None


@dataclass(frozen=True, kw_only=True)
class StepOf(FlowEuler):
    """The step of a diffusers scheduler, of which no solver of ours has the like."""

    scheduler: Any = None

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset()

    @property
    def prediction(self) -> Any:
        return read_prediction(self.scheduler)

    def build(self) -> ComposedSolver:
        return FlowEuler().parts  # the grid; the step is the scheduler's

    def step(self, x: Tensor, output: Tensor, interval: Interval, state: Any) -> tuple[Tensor, Any]:
        time = self.scheduler.timesteps[interval.index]
        return self.scheduler.step(output, time, x, return_dict=False)[0], None


# ------------------------------------------------------------------------------- families
@dataclass(frozen=True)
class Case:
    """How the own loop expresses a family.

    Attributes:
        formula: Combines the outputs of a step's calls.
        unit: What the network is told at a time of the grid.
        copies: Samples of one prompt in each call, by place.
        into: The network's input from the latents and the recorded one.
        out: The prediction from the network's first output and the latents.
        changes: Arguments of the request.
        only: Steps of the calls that not every step makes.
        euler: Whether the scheduler steps as `FlowEuler` does.
    """

    formula: Callable[[Outputs], Tensor]
    unit: Callable[[Tensor], Tensor] = field(default=lambda time: time)
    copies: tuple[int, ...] = (1,)
    into: Callable[[Tensor, Tensor], Any] = field(default=lambda x, recorded: x)
    out: Callable[[Any, Tensor], Tensor] = field(default=lambda output, x: output)
    changes: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, Sequence[int]] = field(default_factory=dict)
    euler: bool = True


def thousandth(time: Tensor) -> Tensor:
    return time / 1000


def tokens_behind(x: Tensor, recorded: Tensor) -> Tensor:
    """Reference tokens follow those of the latents."""
    return torch.cat([x, recorded[:, x.shape[1] :]], dim=1)


def channels_behind(x: Tensor, recorded: Tensor) -> Tensor:
    """Conditions follow the latents' channels."""
    return torch.cat([x, recorded[:, x.shape[1] :]], dim=1)


TWO = (1, 1)
CASES: dict[str, Case] = {
    "wan-euler": Case(pair(5.0), copies=TWO),
    "wan-unipc": Case(pair(5.0), copies=TWO, euler=False),
    "wan-i2v": Case(pair(5.0), copies=TWO, into=channels_behind, euler=False),
    "wan-modular": Case(pair(5.0), copies=TWO),
    "flux": Case(alone, thousandth),
    "flux-true-cfg": Case(pair(3.0), thousandth, TWO),
    "flux-kontext": Case(
        alone, thousandth, into=tokens_behind, out=lambda output, x: output[:, : x.shape[1]]
    ),
    "flux-img2img": Case(alone, thousandth),
    "hunyuan-video": Case(alone),
    "qwen-image": Case(pair(4.0, normed), thousandth, TWO),
    "sd3": Case(halves(7.0), copies=(2,)),
    "sd3 with skip-layer guidance": Case(
        with_skipped_layers,
        copies=(2, 1),
        changes={
            "skip_guidance_layers": [1],
            "skip_layer_guidance_start": 0.2,
            "skip_layer_guidance_stop": 0.8,
        },
        only={"call1": (2, 3, 4)},
    ),
    "cogvideox": Case(halves(6.0), copies=(2,), euler=False),
    "ltx": Case(halves(3.0), copies=(2,)),
    "pixart-sigma": Case(
        halves(4.5), copies=(2,), out=lambda output, x: output[:, : x.shape[1]], euler=False
    ),
    "sana": Case(halves(4.5), copies=(2,)),
    "lumina2": Case(negated(pair(4.0, normed)), lambda time: 1 - time / 1000, TWO),
    "hidream": Case(negated_first(halves(5.0)), copies=(2,)),
    "z-image": Case(
        negated(conditional_first),
        lambda time: (1000 - time) / 1000,
        (2,),
        into=lambda x, recorded: list(x.unsqueeze(2).unbind(0)),
        out=lambda output, x: torch.stack(list(output)).squeeze(2),
    ),
    "aura-flow": Case(halves(3.5), thousandth, (2,)),
    "chroma": Case(pair(5.0), thousandth, TWO),
    "cogview4": Case(pair(5.0), copies=TWO),
    "sd": Case(halves(7.5), copies=(2,), euler=False),
}


@dataclass(frozen=True)
class Recorded:
    """A pipeline, the arguments of its first call of each branch, and its first latents."""

    pipe: Any
    family: Family
    names: tuple[str, ...]
    calls: tuple[Mapping[str, Any], ...]
    latents: Tensor
    schedule: Schedule
    first: int


def recorded(case: Case, family: Family) -> Recorded:
    pipe = family.build()
    network = network_of(pipe, family)
    calls: list[Mapping[str, Any]] = []
    forward = unwrap_class(network).forward
    handle = network.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(dict(bind_arguments(forward, args, kwargs))),
        with_kwargs=True,
    )
    with attach(pipe, []) as run:
        sample = family.run(pipe, STEPS, **case.changes)
    handle.remove()
    found: dict[str, Mapping[str, Any]] = {}
    for call, arguments in zip(run.traces[0].calls(), calls, strict=True):
        found.setdefault(call.branch, arguments)
    given = find_latents(calls[0])
    whole = given if isinstance(given, Tensor) else torch.stack(given)
    latents = whole[: whole.shape[0] // case.copies[0]]
    if latents.numel() != sample.numel():  # conditions lie behind them
        latents = latents[tuple(slice(size) for size in sample.shape)]
    return Recorded(
        pipe,
        family,
        tuple(found),
        tuple(found.values()),
        latents.reshape(sample.shape),
        read_schedule(pipe.scheduler),
        run.traces[0].steps[0].index,
    )


def network_of(pipe: Any, family: Family) -> Any:
    return getattr(pipe, family.inner[0].partition(".")[0])


def network(case: Case, made: Recorded, x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
    """The pipeline's network as the own loop wants one."""
    arguments = made.calls[int(condition[0, 0])]
    before, told = find_latents(arguments), find_timestep(arguments)
    time = case.unit(times).to(told.dtype)
    given = {
        name: case.into(x, before)
        if value is before
        else (time if told.ndim else time[0])
        if value is told
        else value
        for name, value in arguments.items()
    }
    raw = network_of(made.pipe, made.family)(**given)
    return case.out(raw if isinstance(raw, Tensor) else raw[0], x)


PAGE = Path(__file__).parents[3] / "docs/how-to/diffusers.md"


def test_the_page_lists_the_families_and_why_others_are_not_among_them() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## The same samples as the own loop")[2]
    section = section.partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", section, re.MULTILINE))
    listed = {True: rows["`FlowEuler`"], False: rows["the scheduler's own step"]}
    for euler, names in listed.items():
        expected = {name.partition(" ")[0] for name, case in CASES.items() if case.euler is euler}
        assert set(re.findall(r"`([a-z0-9-]+)`", names)) == expected
    absent = set(re.findall(r"^\* `([a-z0-9-]+)`", section, re.MULTILINE))
    assert absent == {"wan22", "cogvideox-i2v", "sdxl", "sdxl-controlnet"}


def policies_of(case: Case) -> dict[str, list[Policy]]:
    found: dict[str, list[Policy]] = {"none": [], "skip": [SKIP]}
    if case.euler:
        found["warp"] = [SKIP, PHI]
        found["warp, told the nominal time"] = [SKIP, replace(PHI, network_time="nominal")]
    return found


@pytest.mark.parametrize("name", CASES)
def test_own_loop_equals_the_pipeline(name: str) -> None:
    """Latents, settled intervals and every call with its reason.

    Where a branch begins in the middle, the own loop, which knows the branches of a step
    beforehand, gives that as the reason to compute the others too.
    """
    case = CASES[name]
    family = FAMILIES[name.partition(" ")[0]]
    made = recorded(case, family)
    guidance = ByFormula(tuple(zip(made.names, case.copies, strict=True)), case.formula, case.only)
    request = Request(
        latents=made.latents,
        cond=torch.zeros(made.latents.shape[0], 1),
        schedule=made.schedule,
        first=made.first,
    )
    samples = []
    for which, policies in policies_of(case).items():
        with attach(made.pipe, policies) as run:
            sample = family.run(made.pipe, STEPS, **case.changes)
        solver: Any = SingleEuler()
        if not case.euler:
            made.pipe.scheduler.set_timesteps(STEPS)
            solver = StepOf(scheduler=made.pipe.scheduler)
        loop = SamplingLoop(Engine(policies), solver, guidance)
        own = loop.run(partial(network, case, made), request)
        assert torch.equal(own.sample, sample), which
        (trace,) = run.traces
        assert trace.network_calls == own.trace.network_calls
        assert [(s.index, s.start, s.end, s.time) for s in trace.steps] == [
            (s.index, s.start, s.end, s.time) for s in own.trace.steps
        ]
        calls, own_calls = (
            [
                (c.index, c.branch, c.computed, "" if case.only else c.reason, c.source)
                for c in one.calls()
            ]
            for one in (trace, own.trace)
        )
        assert calls == own_calls
        samples.append(sample)
        if len(policies) > 1:  # `FlowEuler` subtracts the sigmas in double precision
            plain = SamplingLoop(Engine(policies), FlowEuler(), guidance)
            double = plain.run(partial(network, case, made), request).sample
            torch.testing.assert_close(double, sample, rtol=1e-3, atol=1e-4)
        elif case.euler:
            double = SamplingLoop(Engine(policies), FlowEuler(), guidance)
            again = double.run(partial(network, case, made), request).sample
            assert torch.equal(again, sample), which
    assert not any(torch.equal(a, b) for a, b in pairwise(samples))
