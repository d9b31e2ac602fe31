"""Defects that were found in other caches, each as a test that it does not exist here.

Elsewhere: state after an error and independent pipelines of one class in `test_lifecycle.py` and
`test_families.py`, an unconditional call that is left out in `test_lifecycle.py`, pipelines that
name no branches in `test_families.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from erta_framework import Engine, Policy, hookimpl
from erta_framework.errors import CapabilityError
from erta_integrations.diffusers import attach
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES, counted, drawn

SOME = SkipPolicy(steps=(0, 2, 5))
WAN = FAMILIES["wan-euler"]


class Stop(Exception):
    """What a user's own code raises."""


def stop_at_two(_: Any, step: int, *__: Any) -> dict[str, Any]:
    if step == 2:
        raise Stop
    return {}


@pytest.mark.parametrize("name", ["wan-euler", "flux", "sdxl", "hunyuan-video"])
def test_another_resolution_after_an_abort(name: str) -> None:
    """A cache that keeps the aborted request's tensors adds them to latents of another shape."""
    family = FAMILIES[name]
    pipe = family.build()
    with attach(pipe, [SOME]):
        expected = family.run(pipe, **family.other)
    with attach(pipe, [SOME]):
        with pytest.raises(Stop):
            family.run(pipe, callback_on_step_end=stop_at_two)
        assert torch.equal(family.run(pipe, **family.other), expected)


@pytest.mark.parametrize("steps", [4, 6, 13])
def test_a_schedule_of_another_length_does_not_wrap(steps: int) -> None:
    """A cache that counts calls up to a number of its own starts again in the middle of a run."""
    pipe = WAN.build()
    listed, every = SkipPolicy(steps=(0, 1, 3)), SkipPolicy(every=3)
    for policy, computed in ((listed, {0, 1, 3}), (every, {*range(0, steps, 3), steps - 1})):
        with attach(pipe, [policy]) as run, counted(pipe, WAN) as made:
            first = WAN.run(pipe, steps)
            assert torch.equal(WAN.run(pipe, steps), first)
        expected = sorted(computed)
        assert [list(trace.computed_steps) for trace in run.traces] == [expected] * 2
        assert len(made) == 2 * 2 * len(expected)


def test_both_branches_of_guidance_are_computed_equally_often() -> None:
    """A cache without a state for each branch answers the second branch with the first's."""
    pipe = WAN.build()
    with attach(pipe, [SOME]) as run:
        WAN.run(pipe)
    (trace,) = run.traces
    branches: dict[str, list[int]] = {"cond": [], "uncond": []}
    for call in trace.calls():
        if call.computed:
            branches[call.branch].append(call.index)
        else:
            assert call.source in branches[call.branch]
    assert branches == {"cond": [0, 2, 5], "uncond": [0, 2, 5]}


def test_nothing_skipped_is_said_and_not_silent() -> None:
    pipe = WAN.build()
    with attach(pipe, "skip_policy", every=1) as run:
        assert run.summary().startswith("no request yet; every request computes 50 of 50 steps")
        WAN.run(pipe)
    assert "12 network calls, 0 branch calls reused, 6 of 6 steps computed" in run.summary()


class Unmatched:
    """A pipeline whose only module takes no latents, so nothing can be cached."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.decoder = torch.nn.Linear(2, 2)
        self.components = {"decoder": self.decoder}


def test_a_pipeline_that_cannot_be_cached_is_an_error_at_attach() -> None:
    with pytest.raises(CapabilityError, match=r"latents and a time; .* modules are: decoder"):
        attach(Unmatched(WAN.build().scheduler), [SOME])


def test_attaching_after_a_plain_request() -> None:
    """A cache that looks for its modules once misses what a request before it has set up."""
    used, new = WAN.build(), WAN.build()
    WAN.run(used)
    with attach(used, [SOME]), attach(new, [SOME]):
        assert torch.equal(WAN.run(used), WAN.run(new))


class Counts(Policy):
    """Notes the steps it was asked about."""

    def __init__(self, seen: list[int]) -> None:
        object.__setattr__(self, "seen", seen)

    @hookimpl
    def decide(self, step: Any) -> None:
        self.seen.append(step.index)


def test_two_policies_share_one_step_clock() -> None:
    """Two caches that count on their own disagree as soon as one of them skips."""
    pipe, seen = WAN.build(), list[int]()
    with attach(pipe, Engine([Counts(seen), SOME])) as run:
        WAN.run(pipe)
    assert run.traces[0].computed_steps == (0, 2, 5)
    assert seen == [1, 2, 3, 4, 5]  # at step 0 there is nothing to reuse, so nobody is asked


def test_a_fixed_schedule_treats_a_batch_as_its_samples() -> None:
    """A decision over the whole batch makes a sample depend on those beside it; this one cannot."""
    pipe = WAN.build()
    noise, text = drawn(2, 16, 3, 2, 2), drawn(2, 8, 32, seed=3)

    def run(rows: slice) -> torch.Tensor:
        rest = {"negative_prompt_embeds": text[rows] + 0.5, "prompt_embeds": text[rows]}
        return WAN.run(pipe, latents=noise[rows].clone(), **rest)

    with attach(pipe, [SOME]):
        both = run(slice(0, 2))
        alone = torch.cat([run(slice(0, 1)), run(slice(1, 2))])
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone[0], alone[1])
