"""Trials through pipelines: the network on other latents and at earlier times."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool3d

from erta_framework import Policy, Traits, hookimpl
from erta_framework.errors import CapabilityError
from erta_integrations.diffusers import attach
from tiny_pipelines import FAMILIES, counted

STEPS = 4


class Repeats(Policy):
    """Repeats the step before: its latents, at its time."""

    traits = Traits(requires=frozenset({"trial"}))
    pairs: list = None  # type: ignore[assignment]

    @hookimpl(wrapper=True)
    def forward(self, step, call):
        before = call.state_of(self, dict)
        if before:
            again = call.trial(before["x"], before["time"])
            assert again.shape == before["output"].shape
            self.pairs.append((step.index, call.branch, before["output"], again))
        output = yield
        before.update(x=call.x.clone(), time=step.interval.time, output=output.clone())
        return output


# identity, 1 / 1000, reversed, a list of latents, other dtype of the time, joined conditions
NAMES = ["wan-euler", "wan-unipc", "wan-i2v", "flux", "lumina2", "z-image", "sdxl", "wan22"]


@pytest.mark.parametrize("name", NAMES)
def test_an_earlier_call_is_repeated_exactly(name: str) -> None:
    family = FAMILIES[name]
    policy = Repeats(pairs=[])
    plain = family.run(family.build(), STEPS)
    pipe = family.build()
    with attach(pipe, [policy]) as run, counted(pipe, family) as calls:
        latents = family.run(pipe, STEPS)
    assert torch.equal(plain, latents)
    trace = run.traces[0]
    assert len(policy.pairs) == trace.trial_calls >= STEPS - 2
    for index, branch, first, again in policy.pairs:
        assert torch.allclose(first, again, rtol=1e-5, atol=1e-6), (index, branch)
    assert len(calls) == trace.network_calls + trace.trial_calls


def test_a_later_time_is_refused_because_nobody_knows_what_to_tell() -> None:
    class Ahead(Policy):
        traits = Traits(requires=frozenset({"trial"}))

        @hookimpl(wrapper=True)
        def forward(self, step, call):
            call.trial(call.x, step.interval.end_time)
            return (yield)

    family = FAMILIES["wan-euler"]
    pipe = family.build()
    with attach(pipe, [Ahead()]), pytest.raises(CapabilityError, match="no trial of transformer"):
        family.run(pipe, STEPS)
    assert torch.equal(family.run(pipe, STEPS), family.run(family.build(), STEPS))


def test_the_trunk_seam_offers_none() -> None:
    pipe = FAMILIES["wan-euler"].build()
    with pytest.raises(CapabilityError, match="requires trial"):
        attach(pipe, [Repeats(pairs=[])], seam="trunk")


def test_smaller_latents_go_through_a_network_that_takes_any_size() -> None:
    shapes = []

    class Smaller(Policy):
        traits = Traits(requires=frozenset({"trial"}))

        @hookimpl(wrapper=True)
        def forward(self, call):
            shapes.append(call.trial(call.x[..., :2]).shape)
            return (yield)

    family = FAMILIES["wan-euler"]
    pipe = family.build()
    with attach(pipe, [Smaller()]) as run:
        family.run(pipe, STEPS, **family.other)
    assert {tuple(shape) for shape in shapes} == {(1, 16, 3, 4, 2)}
    assert run.traces[0].trial_calls == len(shapes) == 2 * STEPS


class Shrinks(Policy):
    """Tries every other place of the latents' grid, and keeps what it got."""

    traits = Traits(requires=frozenset({"trial", "trial:resized"}))
    found: list = None  # type: ignore[assignment]

    @hookimpl(wrapper=True)
    def forward(self, step, call):
        x = call.x[..., ::2, ::2]
        if self.found is not None:
            self.found.append((x.clone(), call.trial(x)))
        else:
            assert call.trial(x).shape == x.shape
        return (yield)


@pytest.mark.parametrize(
    ("name", "condition"), [("wan-i2v", None), ("wan-vace", "control_hidden_states")]
)
def test_conditions_of_the_size_of_the_latents_shrink_with_them(name: str, condition) -> None:
    """A call of the network by hand, with conditions averaged here, gives the very same."""
    family, policy, made = FAMILIES[name], Shrinks(found=[]), []
    pipe = family.build()
    forward = pipe.transformer.forward

    def watched(*args, **kwargs):
        made.append(inspect.signature(forward).bind(*args, **kwargs).arguments)
        return forward(*args, **kwargs)

    pipe.transformer.forward = watched
    with attach(pipe, [policy]) as run:
        family.run(pipe, 2, **family.other)
    network = made[0]  # the first call of the pipeline itself
    x, output = policy.found[0]
    channels, latents = x.shape[1], network["hidden_states"]
    by_hand = dict(network)
    small = (*x.shape[2:],)
    by_hand["hidden_states"] = x
    if condition is None:
        rest = adaptive_avg_pool3d(latents[:, channels:], small)
        assert rest.shape[1] > 0
        by_hand["hidden_states"] = torch.cat([x, rest], 1)
    else:
        assert network[condition].shape[2:] == latents.shape[2:]
        by_hand[condition] = adaptive_avg_pool3d(network[condition], small)
    with torch.no_grad():
        expected = forward(**by_hand)[0]
    assert torch.equal(output, expected)
    assert run.traces[0].trial_calls == len(policy.found)


@pytest.mark.parametrize("name", ["flux", "qwen-image", "ltx", "cogvideox", "lumina", "krea2"])
def test_a_network_that_is_told_positions_is_refused_at_attach(name: str) -> None:
    pipe = FAMILIES[name].build()
    with pytest.raises(CapabilityError, match="takes the positions of its tokens in"):
        attach(pipe, [Shrinks()])
    attach(pipe, [Repeats(pairs=[])]).detach()  # trials of the same size remain


@pytest.mark.parametrize(
    "name", ["sd3", "z-image", "hunyuan-video", "mochi", "sdxl", "pixart-sigma"]
)
def test_small_latents_go_through_networks_that_make_their_positions(name: str) -> None:
    family = FAMILIES[name]
    plain = family.run(family.build(), STEPS)
    pipe = family.build()
    with attach(pipe, [Shrinks()]) as run:
        assert torch.equal(family.run(pipe, STEPS), plain)
    trace = run.traces[0]
    assert trace.trial_calls == trace.network_calls
    assert trace.trial_share == trace.trial_calls / 4


def test_features_of_a_controlnet_are_refused() -> None:
    family = FAMILIES["sdxl-controlnet"]
    pipe = family.build()
    with attach(pipe, [Shrinks()]), pytest.raises(CapabilityError, match="of a control network"):
        family.run(pipe, STEPS)


def test_a_size_that_the_network_does_not_take_says_which() -> None:
    class Odd(Shrinks):
        @hookimpl(wrapper=True)
        def forward(self, step, call):
            call.trial(call.x[..., :1])
            return (yield)

    family = FAMILIES["wan-euler"]
    pipe = family.build()
    with (
        attach(pipe, [Odd()]),
        pytest.raises(CapabilityError, match=r"\(3, 2, 1\), where this pipeline gives \(3, 2, 2\)"),
    ):
        family.run(pipe, STEPS)
