"""Pipelines and networks that diffusers does not have: nothing here is in any table of names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from erta_framework import Interval, Policy, Traits, hookimpl
from erta_framework.errors import CapabilityError, ProtocolError
from erta_framework.session import Trace
from erta_integrations.diffusers import attach
from erta_policies.easycache import EasyCache
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES, build_skyreels, drawn

SOME = SkipPolicy(steps=(0, 2, 5))
STEPS = 6
PROMPTS = {name: drawn(1, 4, 8, seed=k) for k, name in enumerate(("cond", "uncond", "third"))}


class Network(nn.Module):
    """Mixes tokens with a time and a condition, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        with torch.no_grad():
            self.inner.weight.copy_(drawn(8, 8, seed=3) / 4)
            self.inner.bias.copy_(drawn(8, seed=4))
        self.calls = 0

    def mix(self, tokens: Tensor, time: Tensor | float, condition: Tensor) -> Tensor:
        self.calls += 1
        mixed: Tensor = self.inner(tokens) + condition.mean(1, keepdim=True) * time
        return torch.tanh(mixed)


class Usual(Network):
    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        kv_cache_mode: str | None = None,
        skip_layers: list[int] | None = None,
    ) -> tuple[Tensor]:
        return (self.mix(hidden_states, timestep / 1000, encoder_hidden_states),)


@dataclass
class Foreign:
    """A pipeline with nothing of diffusers' but a scheduler.

    `step_of` makes the prediction of one step from `(network, latents, index, time)`.
    """

    transformer: nn.Module
    predict: Callable[[Any, Tensor, int, Tensor], Tensor]
    positional: bool = True
    scheduler: Any = field(default_factory=FlowMatchEulerDiscreteScheduler)

    def __call__(self, length: int = 6, seed: int = 0) -> Tensor:
        self.scheduler.set_timesteps(STEPS)
        latents = drawn(1, length, 8, seed=100 + seed)
        for index, time in enumerate(self.scheduler.timesteps):
            prediction = self.predict(self.transformer, latents, index, time)
            if self.positional:
                latents = self.scheduler.step(prediction, time, latents).prev_sample
            else:
                latents = self.scheduler.step(
                    sample=latents, model_output=prediction, timestep=time, return_dict=False
                )[0]
        return latents


def checked(pipe: Foreign, network: Network, per_step: int = 1) -> Trace:
    """What must hold on any pipeline; the trace of a request with `SOME`."""
    plain = pipe()
    assert network.calls == per_step * STEPS
    with attach(pipe, [SkipPolicy(every=1)]) as run:
        assert torch.equal(pipe(), plain)
    network.calls = 0
    with attach(pipe, [SOME]) as run:
        first = pipe()
        assert network.calls == run.traces[0].network_calls
        assert torch.equal(pipe(), first)
        other = pipe(length=9, seed=1)
    with attach(pipe, [SOME]):
        assert torch.equal(pipe(length=9, seed=1), other)
    assert not torch.equal(first, plain)
    assert torch.equal(pipe(), plain)
    return run.traces[0]


def computed(trace: Trace) -> list[list[str]]:
    """Branches computed in each step."""
    return [[call.branch for call in step.calls if call.computed] for step in trace.steps]


# ------------------------------------------------------------------------ branches
def three_branches(network: Any, x: Tensor, index: int, time: Tensor) -> Tensor:
    cond, uncond, third = (
        network(x, time, encoder_hidden_states=PROMPTS[name])[0] for name in PROMPTS
    )
    return cond + 0.5 * (cond - uncond) + 0.1 * (cond - third)


@pytest.mark.parametrize("positional", [True, False])
def test_three_branches_without_names(positional: bool) -> None:
    network = Usual()
    trace = checked(Foreign(network, three_branches, positional), network, per_step=3)
    every = ["call0", "call1", "call2"]
    assert computed(trace) == [every, [], every, [], [], every]


def interval(first: int, last: int) -> Callable[[Any, Tensor, int, Tensor], Tensor]:
    """Guidance only in some steps, with the unconditional branch first."""

    def predict(network: Any, x: Tensor, index: int, time: Tensor) -> Tensor:
        guided = first <= index <= last
        uncond = network(x, time, PROMPTS["uncond"])[0] if guided else None
        cond: Tensor = network(x, time, PROMPTS["cond"])[0]
        return cond if uncond is None else cond + 0.5 * (cond - uncond)

    return predict


def test_a_branch_that_starts_late_is_computed_and_its_step_with_it() -> None:
    """Asked first in its first step, it has nothing to reuse, and one decision is for all."""
    network = Usual()
    pipe = Foreign(network, interval(3, 4))
    with attach(pipe, [SOME]) as run:
        pipe()
    assert computed(run.traces[0]) == [["call0"], [], ["call0"], ["call1", "call0"], [], ["call0"]]
    assert run.traces[0].steps[3].calls[0].reason == "cold"


def test_a_branch_that_starts_late_behind_a_reused_one_is_computed_alone() -> None:
    """The first branch was answered before the second was known of; it is fresh once, alone."""

    def predict(network: Any, x: Tensor, index: int, time: Tensor) -> Tensor:
        cond: Tensor = network(x, time, PROMPTS["cond"])[0]
        if index < 3:
            return cond
        uncond: Tensor = network(x, time, PROMPTS["uncond"])[0]
        return cond + 0.5 * (cond - uncond)

    network = Usual()
    pipe = Foreign(network, predict)
    with attach(pipe, [SOME]) as run:
        sample = pipe()
    trace = run.traces[0]
    assert computed(trace) == [["call0"], [], ["call0"], ["call1"], [], ["call0", "call1"]]
    assert [(c.reason, c.computed) for c in trace.steps[3].calls] == [
        ("schedule", False),
        ("cold", True),
    ]
    # by hand: the same residuals, each of the branch's own last computed step
    kept: dict[str, Tensor] = {}

    def by_hand(_: Any, x: Tensor, index: int, time: Tensor) -> Tensor:
        found = {}
        for name in ("cond",) if index < 3 else ("cond", "uncond"):
            if index in (0, 2, STEPS - 1) or name not in kept:
                found[name] = network(x, time, PROMPTS[name])[0]
                kept[name] = found[name] - x
            found[name] = found.get(name, x + kept[name])
        cond: Tensor = found["cond"]
        return cond if index < 3 else cond + 0.5 * (cond - found["uncond"])

    torch.testing.assert_close(Foreign(network, by_hand)(), sample, rtol=0, atol=1e-6)


# ----------------------------------------------------------------- names and shapes
class OtherNames(Network):
    """No argument has a usual name, and the latents are not the first."""

    def forward(self, text_ids: Tensor, condition: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        return self.mix(noisy, sigma / 1000, condition)


def test_arguments_of_unusual_names() -> None:
    ids = torch.arange(4)

    def predict(network: Any, x: Tensor, index: int, time: Tensor) -> Tensor:
        found: Tensor = network(text_ids=ids, condition=PROMPTS["cond"], noisy=x, sigma=time)
        return found

    network = OtherNames()
    seen: list[torch.Size] = []

    class Looks(Policy):
        """Notes the shape of the latents that policies are shown."""

        @hookimpl
        def on_session_start(self, session: Any) -> None:
            seen.append(session.shape)

    pipe = Foreign(network, predict)
    checked(pipe, network)
    with attach(pipe, [Looks()]):
        pipe()
    assert seen == [(1, 6, 8)]


class References(Network):
    """Takes tokens of a reference picture behind the latents; returns them as well or not."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: Tensor, t: Tensor, prompt_embeds: Tensor, count: int) -> Any:
        mixed = self.mix(x, t / 1000, prompt_embeds)
        return mixed if self.whole else mixed[:, :count]


@pytest.mark.parametrize("whole", [True, False])
def test_reference_tokens(whole: bool) -> None:
    reference = drawn(1, 5, 8, seed=9)

    def predict(network: Any, x: Tensor, index: int, time: Tensor) -> Tensor:
        joined = torch.cat([x, reference], dim=1)
        found: Tensor = network(joined, time, PROMPTS["cond"], x.shape[1])
        return found[:, : x.shape[1]]

    network = References(whole)
    trace = checked(Foreign(network, predict), network)
    assert computed(trace) == [["call0"], [], ["call0"], [], [], ["call0"]]


class Two(Network):
    """A second output without a batch, which the pipeline writes into."""

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor
    ) -> tuple[Tensor, Tensor]:
        out = self.mix(sample, timestep / 1000, encoder_hidden_states)
        return out, out.mean((0, 1))


def test_second_outputs_are_reused_as_they_were_computed() -> None:
    seen: list[Tensor] = []

    def predict(network: Any, x: Tensor, index: int, time: Tensor) -> Tensor:
        out, scale = network(x, time, PROMPTS["cond"])
        seen.append(scale.clone())
        out = out + scale
        scale.zero_()
        return out

    network = Two()
    pipe = Foreign(network, predict)
    checked(pipe, network)
    seen.clear()
    with attach(pipe, [SOME]):
        pipe()
    same = [torch.equal(a, b) for a, b in zip(seen[1:], seen, strict=False)]
    assert same == [True, False, True, True, False]
    assert all(scale.any() for scale in seen)


class Wrapper(nn.Module):
    """Passes every argument on, as wrappers of accelerate, peft and DDP do."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def test_a_network_inside_of_wrappers() -> None:
    network = Usual()
    pipe = Foreign(Wrapper(Wrapper(network)), three_branches)
    trace = checked(pipe, network, per_step=3)
    assert computed(trace)[0] == ["call0", "call1", "call2"]


def test_what_has_no_residual_is_reused_whole_or_refused() -> None:
    class Taller(Network):
        def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
            out = self.mix(x, t / 1000, text)
            return torch.cat([out, out, 2 * out], dim=1)

    def predict(network: Any, x: Tensor, index: int, time: Tensor) -> Tensor:
        found: Tensor = network(x, time, PROMPTS["cond"])
        return found[:, -x.shape[1] :]

    network = Taller()
    pipe = Foreign(network, predict)
    checked(pipe, network)
    with (
        attach(pipe, [EasyCache()]),
        pytest.raises(CapabilityError, match=r"\(Taller\) returns \(1, 18, 8\) for latents"),
    ):
        pipe()


# ------------------------------------------------------------- changes within a request
def named_or_not(network: Any, named: bool) -> AbstractContextManager[object]:
    return network.cache_context("cond") if named else nullcontext()


class Contexts(Usual):
    def cache_context(self, name: str) -> AbstractContextManager[object]:
        return nullcontext()


@pytest.mark.parametrize("named", [True, False])
def test_a_mode_that_changes_makes_another_branch(named: bool) -> None:
    """A call that fills the network's own cache is no stand-in for one that reads it."""

    def predict(network: Any, x: Tensor, index: int, time: Tensor) -> Tensor:
        mode = "extract" if index == 0 else "cached"
        with named_or_not(network, named):
            found: Tensor = network(x, time, PROMPTS["cond"], kv_cache_mode=mode)[0]
        return found

    network = Contexts()
    trace = checked(Foreign(network, predict), network)
    first, second = ("cond", "cond(kv_cache_mode=cached)") if named else ("call0", "call1")
    assert computed(trace) == [[first], [second], [second], [], [], [second]]


@pytest.mark.parametrize("named", [True, False])
def test_latents_that_change_shape_start_from_nothing(named: bool) -> None:
    """Here the shape of the residual stays the same, so it would fit and be wrong."""
    reference = drawn(1, 5, 8, seed=9)

    class Cut(Contexts):
        def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor):  # type: ignore[no-untyped-def,override]
            out = self.mix(hidden_states, timestep / 1000, encoder_hidden_states)
            return (out[:, -6:],)

    def predict(network: Any, x: Tensor, index: int, time: Tensor) -> Tensor:
        joined = torch.cat([reference, x], dim=1) if index == 0 else x
        with named_or_not(network, named):
            found: Tensor = network(joined, time, PROMPTS["cond"])[0]
        return found

    network = Cut()
    pipe = Foreign(network, predict)
    with attach(pipe, [SOME]) as run:
        pipe()
    trace = run.traces[0]
    assert network.calls == trace.network_calls == 4
    name = "cond" if named else "call0"
    assert computed(trace) == [[name], [f"{name}@2"], [f"{name}@2"], [], [], [f"{name}@2"]]


def test_two_networks_in_each_step() -> None:
    """One network a branch, as where the unconditional one is a model of its own."""
    first, second = Usual(), Usual()

    @dataclass
    class Pair(Foreign):
        unconditional_transformer: nn.Module = second

        @property
        def components(self) -> dict[str, object]:
            return {"unconditional_transformer": self.unconditional_transformer}

    def predict(network: Any, x: Tensor, index: int, time: Tensor) -> Tensor:
        cond: Tensor = network(x, time, PROMPTS["cond"])[0]
        uncond: Tensor = pipe.unconditional_transformer(x, time, PROMPTS["uncond"])[0]
        return cond + 0.5 * (cond - uncond)

    pipe = Pair(first, predict)
    plain = pipe()
    with attach(pipe, [SkipPolicy(every=1)]):
        assert torch.equal(pipe(), plain)
    first.calls = second.calls = 0
    with attach(pipe, [SOME]) as run:
        sample = pipe()
        assert (first.calls, second.calls) == (3, 3)
        assert torch.equal(pipe(), sample)
    trace = run.traces[0]
    assert not torch.equal(sample, plain)
    assert [(c.model, c.computed) for step in trace.steps[:2] for c in step.calls] == [
        ("transformer", True),
        ("unconditional_transformer", True),
        ("transformer", False),
        ("unconditional_transformer", False),
    ]


def test_embeddings_made_anew_in_each_step_are_one_branch() -> None:
    def predict(network: Any, x: Tensor, index: int, time: Tensor) -> Tensor:
        cond, uncond = (
            network(x, time, PROMPTS[name].double().float())[0] for name in ("cond", "uncond")
        )
        return cond + 0.5 * (cond - uncond)

    network = Usual()
    trace = checked(Foreign(network, predict), network, per_step=2)
    assert trace.reused_calls == 2 * 3


# ----------------------------------------------------------------------- schedulers
class Bare:
    """A grid of continuous times with its end, and nothing else."""

    order = 1
    config = FrozenDict(num_train_timesteps=1000)

    def set_timesteps(self, count: int) -> None:
        self.timesteps = torch.linspace(1.0, 0.0, count + 1)

    def step(self, output: Tensor, time: Tensor, sample: Tensor) -> SimpleNamespace:
        return SimpleNamespace(prev_sample=sample - output / STEPS)


def test_a_grid_that_holds_its_end_has_one_step_less() -> None:
    @dataclass
    class ButLast(Foreign):
        def __call__(self, length: int = 6, seed: int = 0) -> Tensor:
            self.scheduler.set_timesteps(STEPS)
            latents = drawn(1, length, 8, seed=100 + seed)
            for index, time in enumerate(self.scheduler.timesteps[:-1]):
                prediction = self.predict(self.transformer, latents, index, time)
                latents = self.scheduler.step(prediction, time, latents).prev_sample
            return latents

    network = Usual()
    trace = checked(ButLast(network, three_branches, scheduler=Bare()), network, per_step=3)
    assert trace.num_steps == STEPS
    assert trace.steps[-1].end == 0.0
    assert [bool(branches) for branches in computed(trace)] == [
        True,
        False,
        True,
        False,
        False,
        True,
    ]


def test_diffusion_forcing_is_refused() -> None:
    """Every frame has a copy of the scheduler, which is at another step than the others."""
    pipe = build_skyreels("SkyReelsV2DiffusionForcingPipeline")
    family = FAMILIES["skyreels-v2"]
    plain = family.run(pipe, steps=2, prompt=None)
    with (
        attach(pipe, [SkipPolicy(every=2)]),
        pytest.raises(ProtocolError, match="steps only a copy of its scheduler"),
    ):
        family.run(pipe, steps=2, prompt=None)
    assert torch.equal(family.run(pipe, steps=2, prompt=None), plain)


@dataclass
class Twice(Foreign):
    """Steps the scheduler twice: once to convert the prediction, once to go on."""

    def __call__(self, length: int = 6, seed: int = 0) -> Tensor:
        self.scheduler.set_timesteps(STEPS)
        latents = drawn(1, length, 8, seed=100 + seed)
        for index, time in enumerate(self.scheduler.timesteps):
            prediction = self.predict(self.transformer, latents, index, time)
            converted = self.scheduler.step(prediction, time, latents, return_dict=False)[0]
            self.scheduler._step_index -= 1
            latents = self.scheduler.step(
                0.5 * (prediction + converted), time, latents, return_dict=False
            )[0]
        return latents


def test_a_scheduler_that_is_stepped_twice() -> None:
    network = Usual()
    trace = checked(Twice(network, three_branches), network, per_step=3)
    assert [step.index for step in trace.steps] == list(range(STEPS))


@dataclass
class WithTimes(Foreign):
    """Tells its network a time between 0 and 1, which elsewhere is that of the last step."""

    def __call__(self, length: int = 6, seed: int = 0) -> Tensor:
        self.scheduler.set_timesteps(STEPS)
        latents = drawn(1, length, 8, seed=100 + seed)
        assert float(self.scheduler.timesteps[-1]) == 1.0
        for time in self.scheduler.timesteps:
            prediction = self.transformer(latents, (time / 1000).view(1), PROMPTS["cond"])[0]
            latents = self.scheduler.step(prediction, time, latents).prev_sample
        return latents


def test_times_as_fractions() -> None:
    network = Usual()
    trace = checked(WithTimes(network, three_branches), network)
    assert [step.index for step in trace.steps] == list(range(STEPS))


class Halves(Policy):
    """Ends each step a little early."""

    traits = Traits(requires=frozenset({"first_order"}))

    @hookimpl
    def adjust_interval(self, step: Any, answers: Any) -> Interval | None:
        whole: Interval = step.interval
        if whole.index == step.num_steps - 1:
            return None
        end = whole.end + 0.25 * (whole.start - whole.end)
        return replace(whole, end=end, end_time=1000 * end)


@dataclass
class Beside(Foreign):
    """Steps second latents with a copy of its scheduler, as pipelines with audio do."""

    def __call__(self, length: int = 6, seed: int = 0) -> Tensor:
        copied = deepcopy(self.scheduler)
        copied.set_timesteps(STEPS)
        self.scheduler.set_timesteps(STEPS)
        latents = audio = drawn(1, length, 8, seed=100 + seed)
        for index, time in enumerate(self.scheduler.timesteps):
            prediction = self.predict(self.transformer, latents, index, time)
            latents = self.scheduler.step(prediction, time, latents).prev_sample
            audio = copied.step(prediction, time, audio).prev_sample
        return torch.cat([latents, audio])


def test_a_copy_of_the_scheduler_moves_with_it() -> None:
    pipe = Beside(Usual(), three_branches)
    plain = pipe()
    bystander = deepcopy(pipe.scheduler)
    bystander.set_timesteps(STEPS)
    with attach(pipe, [Halves()]) as run:
        for _ in range(2):
            latents, audio = pipe()
            assert torch.equal(latents, audio)
            assert not torch.equal(latents, plain[0])
    assert run.traces[0].steps[0].end == pytest.approx(1 - 0.75 * (1 - float(bystander.sigmas[1])))
    assert torch.equal(pipe(), plain)


def test_a_pipeline_that_never_steps_its_scheduler_is_refused() -> None:
    network = Usual()

    @dataclass
    class Own(Foreign):
        def __call__(self, length: int = 6, seed: int = 0) -> Tensor:
            self.scheduler.set_timesteps(STEPS)
            latents = drawn(1, length, 8)
            for time in self.scheduler.timesteps:
                latents = latents - network_call(self.transformer, latents, time) / STEPS
            return latents

    def network_call(transformer: Any, x: Tensor, time: Tensor) -> Tensor:
        found: Tensor = transformer(x, time, PROMPTS["cond"])[0]
        return found

    pipe = Own(network, three_branches)
    with attach(pipe, [SOME]), pytest.raises(ProtocolError, match="integrates by itself"):
        pipe()
    assert "forward" not in vars(network)
