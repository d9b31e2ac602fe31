"""What must hold on every pipeline family, with the network's calls counted from inside it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_integrations.diffusers import attach
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES, Family, counted

pytestmark = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if family.slow else [])
        for name, family in FAMILIES.items()
    ],
)
EVERY = SkipPolicy(every=1)
SOME = SkipPolicy(steps=(0, 2, 5))


@functools.cache
def built(name: str) -> Any:
    return FAMILIES[name].build()


@functools.cache
def full(name: str) -> tuple[Tensor, tuple[str, ...]]:
    """Latents without an engine, and the component of every network call."""
    family, pipe = FAMILIES[name], built(name)
    with counted(pipe, family) as calls:
        sample = family.run(pipe)
    return sample, tuple(calls)


@functools.cache
def skipped(name: str) -> Tensor:
    """Latents of the schedule `SOME`, first request of its own attachment."""
    family, pipe = FAMILIES[name], built(name)
    with attach(pipe, [SOME]):
        return family.run(pipe)


def expected_calls(family: Family, calls: tuple[str, ...]) -> list[str]:
    """Calls left by `SOME`: its steps, the first of each kind in a request, and the last."""
    steps = [calls[place] for place in range(0, len(calls), family.calls)]
    offset, known, left = family.skipped(6), set[str](), list[str]()
    for index, component in enumerate(steps, start=offset):
        last = index == offset + len(steps) - 1
        if index in (0, 2, *family.cold) or last or component not in known:
            left += [component] * family.calls
        known.add(component)
    return left


class Stop(Exception):
    """What a user's own code raises."""


def stop_in_callback(*_: Any, **__: Any) -> None:
    raise Stop


def test_the_family_makes_the_calls_it_is_listed_with(name: str) -> None:
    family = FAMILIES[name]
    sample, calls = full(name)
    assert len(calls) == family.calls * (family.forwards(6) - family.skipped(6))
    assert sample.isfinite().all()


@pytest.mark.parametrize("policies", [[], [EVERY]], ids=["no-policy", "every-step"])
def test_a_run_that_skips_nothing_is_bit_identical(name: str, policies: list[Any]) -> None:
    family, pipe = FAMILIES[name], built(name)
    sample, calls = full(name)
    with attach(pipe, policies) as run, counted(pipe, family) as made:
        assert torch.equal(family.run(pipe), sample)
    assert tuple(made) == calls
    (trace,) = run.traces
    assert trace.network_calls == len(calls)
    assert trace.reused_calls == 0


def test_a_schedule_makes_exactly_its_calls(name: str) -> None:
    family, pipe = FAMILIES[name], built(name)
    sample, calls = full(name)
    expected = expected_calls(family, calls)
    with attach(pipe, [SOME]) as run, counted(pipe, family) as made:
        first = family.run(pipe)
        assert made == expected
        assert torch.equal(family.run(pipe), first)
        assert made == expected * 2
    assert torch.equal(first, skipped(name))
    assert not torch.equal(first, sample)
    assert first.isfinite().all()
    for trace in run.traces:
        assert trace.network_calls == len(expected)
        assert trace.reused_calls == len(calls) - len(expected)
        assert [call.model for call in trace.calls() if call.computed] == expected
        assert trace.steps[0].index == family.skipped(6)


def test_a_request_after_an_error_is_a_fresh_one(name: str) -> None:
    family, pipe = FAMILIES[name], built(name)
    fresh, expected = skipped(name), expected_calls(family, full(name)[1])
    with attach(pipe, [SOME]) as run:
        if family.callback is not None:
            with pytest.raises(Stop):
                family.run(pipe, **{family.callback: stop_in_callback})
            assert torch.equal(family.run(pipe), fresh)
        with (
            counted(pipe, family) as made,
            failing_after(pipe, family, made, calls=family.calls),
            pytest.raises(Stop),
        ):
            family.run(pipe)
        assert torch.equal(family.run(pipe), fresh)
    complete = [trace for trace in run.traces if len(trace.steps) > 1]
    assert complete[-1].network_calls == len(expected)


class failing_after:
    """The network raises once it has been called this often."""

    def __init__(self, pipe: Any, family: Family, made: list[str], calls: int) -> None:
        self.family, self.pipe, self.made, self.calls = family, pipe, made, calls
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        def check(*_: Any) -> None:
            if len(self.made) > self.calls:
                raise Stop

        for path in self.family.inner:
            component, _, inner = path.partition(".")
            module = getattr(self.pipe, component).get_submodule(inner)
            self.handles.append(module.register_forward_pre_hook(check))

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def test_requests_of_other_sizes_do_not_disturb_each_other(name: str) -> None:
    family, pipe = FAMILIES[name], built(name)
    usual = skipped(name)
    changes: list[dict[str, Any]] = [dict(family.other), {"steps": 8}, {"seed": 1}]
    if family.batches:
        changes.append({"batch": 2})
    fresh = []
    for change in changes:
        with attach(pipe, [SOME]):
            fresh.append(family.run(pipe, **change))
    with attach(pipe, [SOME]):
        family.run(pipe)
        for change, sample in zip(changes, fresh, strict=True):
            assert torch.equal(family.run(pipe, **change), sample), change
        assert torch.equal(family.run(pipe), usual)


def test_detach_leaves_no_trace(name: str) -> None:
    family, pipe = FAMILIES[name], built(name)
    parts = [pipe.scheduler, *(getattr(pipe, path.partition(".")[0]) for path in family.inner)]
    sample, _ = full(name)
    before = [dict(vars(part)) for part in parts]
    run = attach(pipe, [SOME])
    with run:
        assert any("forward" in vars(part) for part in parts)
    run.detach()
    for part, earlier in zip(parts, before, strict=True):
        assert list(vars(part)) == list(earlier)
        assert all(vars(part)[key] is value for key, value in earlier.items())
    with run:
        family.run(pipe)
    for part in parts:
        assert not {"forward", "step", "set_timesteps", "cache_context"} & vars(part).keys()
    assert torch.equal(family.run(pipe), sample)
