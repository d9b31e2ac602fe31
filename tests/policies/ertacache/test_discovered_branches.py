"""Drivers that learn branches as they come, and latents whose channels stand elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from erta_framework import Engine, FlowEuler, Policy, Profile, SessionInfo
from erta_framework.errors import ProfileError
from erta_policies.ertacache import ErrorLinearizer, ResidualProfiler, SkipPolicy

STEPS = 8
SHAPE = (3, 4, 5)  # batch, channels, tokens


def velocity(x: Tensor, time: float, shift: float) -> Tensor:
    return torch.sin(2 * x + shift) + (1 - time / 1000) * x


def drive(
    policies: Sequence[Policy],
    branches: tuple[str, ...],
    channels_last: bool = False,
    called: tuple[str, ...] = ("cond", "uncond"),
) -> tuple[Tensor, tuple[Profile, ...]]:
    """One request by hand, with CFG of scale 2; latents are `[B, C, L]` or `[B, L, C]`."""
    schedule = FlowEuler().schedule(STEPS)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    x = x.movedim(1, 2).contiguous() if channels_last else x
    info = SessionInfo(
        sigmas=schedule.sigmas,
        times=schedule.times[:-1],
        shape=tuple(x.shape),
        dtype=x.dtype,
        device=x.device,
        branches=branches,
        channel_dim=2 if channels_last else 1,
    )
    with Engine(policies).session(info) as session:
        for index in range(STEPS):
            interval = schedule.interval(index)
            session.begin(interval)
            outputs = []
            for shift, branch in enumerate(called):

                def compute(x: Tensor = x, time: float = interval.time, s: float = shift) -> Tensor:
                    return velocity(x, time, s)

                outputs.append(session.forward(x, compute, branch=branch))
            settled = session.settle()
            x = x + (settled.end - settled.start) * (2 * outputs[0] - outputs[-1])
            session.end(x)
    return x, tuple(session.emitted)


def test_profile_names_the_branches_that_came() -> None:
    known = drive([ResidualProfiler()], ("cond", "uncond"))[1][0]
    found = drive([ResidualProfiler()], ())[1][0]
    assert found.fingerprint["branches"] == "cond,uncond"
    assert found.digest == known.digest


def test_channels_are_where_the_driver_says() -> None:
    first = drive([ResidualProfiler()], ())[1][0]
    last = drive([ResidualProfiler()], (), channels_last=True)[1][0]
    assert last.statistics["v"].shape == (2, STEPS, STEPS, SHAPE[1])
    for name, value in first.statistics.items():
        torch.testing.assert_close(last.statistics[name], value, rtol=1e-4, atol=1e-3, msg=name)


@pytest.mark.parametrize("granularity", ["scalar", "channel"])
def test_corrections_follow_discovered_branches_and_channels(granularity: str) -> None:
    results = []
    for channels_last in (False, True):
        (profile,) = drive([ResidualProfiler()], (), channels_last)[1]
        parts = [SkipPolicy(every=2), ErrorLinearizer(profile=profile, granularity=granularity)]  # type: ignore[arg-type]
        sample, _ = drive(parts, (), channels_last)
        plain, _ = drive([SkipPolicy(every=2)], (), channels_last)
        assert not torch.equal(sample, plain)
        results.append(sample.movedim(2, 1) if channels_last else sample)
    torch.testing.assert_close(results[0], results[1])


def test_a_branch_without_a_line_is_refused_by_name() -> None:
    (profile,) = drive([ResidualProfiler()], (), called=("cond",))[1]
    parts = [SkipPolicy(every=2), ErrorLinearizer(profile=profile)]
    with pytest.raises(ProfileError, match=r"has lines for branches cond, the run has 'uncond'"):
        drive(parts, ())
