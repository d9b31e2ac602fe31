"""Trials through pipelines: the network on other latents and at earlier times."""

from __future__ import annotations

import pytest
import torch

from erta_framework import Policy, hookimpl
from erta_framework.errors import CapabilityError
from erta_integrations.diffusers import attach
from erta_integrations.diffusers.tiny import FAMILIES, counted

STEPS = 4


class Repeats(Policy):
    """Repeats the step before: its latents, at its time."""

    requires = frozenset({"trial"})
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
        requires = frozenset({"trial"})

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
        requires = frozenset({"trial"})

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
