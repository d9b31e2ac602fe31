"""Signals of the timestep alone: known for all steps once the network has run in a request."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch

from erta_bench.overhead import SyncCounter
from erta_framework import Call, Interval, Policy, Step, Traits, hookimpl
from erta_policies.teacache import TeaCache

pytest.importorskip("diffusers")

from erta_integrations.diffusers import attach
from erta_integrations.diffusers.trunk._embedded_times import EmbeddedTimes
from tiny_pipelines import FAMILIES, build_cogvideox_network

STEPS = 12
LINE = (1.0, 0.0)
KNOWN = [
    ("wan-euler", "timestep_embedding"),
    ("wan-euler", "timestep_projection"),
    ("cogvideox", "timestep_embedding"),
]
MEASURED = [("lumina2", "timestep_embedding")]  # which is told 1 - t / 1000


def ran(name: str, policies: list[Policy], steps: int = STEPS) -> Any:
    family, pipe = FAMILIES[name], FAMILIES[name].build()
    with attach(pipe, policies, seam="trunk") as run:
        sample = family.run(pipe, steps=steps)
    return sample, run.traces[0]


def rule(signal: Any, threshold: float = 1.5) -> TeaCache:
    return TeaCache(coefficients=LINE, signal=signal, threshold=threshold)


def said(trace: Any) -> list[tuple[int, str, bool, str]]:
    return [(c.index, c.branch, c.computed, c.reason) for c in trace.calls()]


def looked_at(trace: Any) -> dict[int, set[str]]:
    found = {call.index: set(call.signals) for call in trace.calls() if call.signals}
    return {
        index: {name.removesuffix(":ahead") for name in names} for index, names in found.items()
    }


@pytest.fixture
def never_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmbeddedTimes, "_ahead", lambda *_: torch.empty(0))


@pytest.mark.parametrize(("name", "signal"), KNOWN)
def test_what_is_known_ahead_is_what_would_be_measured(
    name: str, signal: Any, request: pytest.FixtureRequest
) -> None:
    sample, trace = ran(name, [rule(signal)])
    assert looked_at(trace) == {0: {signal}}
    request.getfixturevalue("never_ahead")
    other, measured = ran(name, [rule(signal)])
    assert len(looked_at(measured)) > 2
    assert said(trace) == said(measured)
    assert 2 < len(trace.computed_steps) < STEPS
    assert torch.equal(sample, other)


@pytest.mark.parametrize(("name", "signal"), MEASURED)
def test_a_timestep_that_the_pipeline_turns_round_is_measured(name: str, signal: Any) -> None:
    _, trace = ran(name, [rule(signal, 1e9)])
    assert len(looked_at(trace)) > 2


def test_no_value_is_read_back_after_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reads(steps: int) -> int:
        with SyncCounter() as syncs:
            ran("wan-euler", [rule("timestep_embedding")], steps)
        return syncs.counts["tolist"]

    ahead = reads(8), reads(16)
    assert ahead[0] == ahead[1]
    monkeypatch.setattr(EmbeddedTimes, "_ahead", lambda *_: torch.empty(0))
    measured = reads(8), reads(16)
    assert measured[1] - measured[0] >= 7


class Moved(Policy):
    """Ends one step elsewhere, so that the next is off the grid."""

    at: int = 4

    @hookimpl
    def adjust_interval(self, step: Step) -> Interval | None:
        if step.index != self.at:
            return None
        interval = step.interval
        part = 0.9
        return replace(
            interval,
            end=interval.start + part * (interval.end - interval.start),
            end_time=interval.time + part * (interval.end_time - interval.time),
        )


def test_a_step_off_the_grid_is_measured_again() -> None:
    measured = TeaCache(
        coefficients=LINE, signal="timestep_embedding", threshold=1.5, per_sample=False
    )
    _, trace = ran("wan-euler", [measured, Moved()])
    looked = looked_at(trace)
    assert set(looked) == {0, *range(5, STEPS)}
    (five,) = {(c.computed, c.reason) for c in trace.calls() if c.index == 5}
    assert five == (True, "no signal of the step before")


def test_modules_that_are_wired_otherwise_are_measured() -> None:
    family, pipe = FAMILIES["wan-euler"], FAMILIES["wan-euler"].build()
    embedder = pipe.transformer.condition_embedder
    own = type(embedder.act_fn).forward

    class Doubled(type(embedder.act_fn)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            doubled: torch.Tensor = own(self, 2 * x) if pipe.calls % 2 else own(self, x)
            pipe.calls += 1
            return doubled

    pipe.calls = 1
    embedder.act_fn = Doubled()
    with attach(pipe, [rule("timestep_projection")], seam="trunk") as run:
        family.run(pipe, steps=STEPS)
    assert len(looked_at(run.traces[0])) > 2


def test_the_offset_of_cogvideox_1_5_is_added_to_the_embedding_of_the_timestep() -> None:
    """CogVideoX1.5 I2V gives its blocks `time_embedding(t) + ofs_embedding(2)`."""
    network = build_cogvideox_network(ofs_embed_dim=2)
    given: list[torch.Tensor] = []
    network.transformer_blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: given.append((args + tuple(kwargs.values()))[2].clone()),
        with_kwargs=True,
    )
    pipe = FAMILIES["cogvideox"].build()
    pipe.transformer = network
    bare = type(network).forward

    def told(*args: Any, **kwargs: Any) -> Any:
        return bare(network, *args, **{**kwargs, "ofs": torch.full((1,), 2.0)})

    network.forward = functools.wraps(network.forward)(told)
    seen: list[torch.Tensor] = []

    class Look(Policy):
        traits = Traits(requires=frozenset({"signal:timestep_embedding"}))

        @hookimpl
        def decide(self, call: Call) -> None:
            seen.append(call.feature("timestep_embedding").clone())

    with attach(pipe, [Look()], seam="trunk"):
        FAMILIES["cogvideox"].run(pipe, steps=3)
    assert len(seen) == 2
    for one in seen:
        assert any(one.shape == other.shape and torch.equal(one, other) for other in given)
    _, trace = run_of(pipe, rule("timestep_embedding", 1e9))
    assert looked_at(trace) == {0: {"timestep_embedding"}}


def run_of(pipe: Any, policy: Policy) -> Any:
    with attach(pipe, [policy], seam="trunk") as run:
        sample = FAMILIES["cogvideox"].run(pipe, steps=STEPS)
    return sample, run.traces[0]


def test_lumina_2_looks_at_text_and_image_tokens_together() -> None:
    pipe, family = FAMILIES["lumina2"].build(), FAMILIES["lumina2"]
    joint: list[int] = []
    pipe.transformer.layers[0].register_forward_pre_hook(
        lambda _, args: joint.append(args[0].shape[1])
    )
    seen: list[int] = []

    class Look(Policy):
        traits = Traits(requires=frozenset({"signal:modulated_input"}))

        @hookimpl
        def decide(self, call: Call) -> None:
            seen.append(call.feature("modulated_input").shape[1])

    with attach(pipe, [Look()], seam="trunk"):
        family.run(pipe, steps=3)
    assert len(seen) == 2
    assert set(seen) <= set(joint)
    image = (family.size["height"] // 16) * (family.size["width"] // 16)
    assert min(seen) > image
