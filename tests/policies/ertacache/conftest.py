"""A smooth network, runs of the loop, and profiles, shared by the tests of ERTACache."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_framework import (
    CFG,
    Engine,
    FlowEuler,
    Interval,
    NoGuidance,
    Policy,
    Profile,
    Request,
    Result,
    SamplingLoop,
    Session,
    SessionInfo,
)
from erta_policies.ertacache import KIND, ResidualProfiler

SHAPE = (2, 3, 4)


class Swirl:
    """A velocity that is smooth but not affine; rows of a batch do not see each other."""

    def __init__(self) -> None:
        self.calls = 0
        self.times: list[float] = []

    def __call__(self, x: Tensor, times: Tensor, cond: Tensor) -> Tensor:
        self.calls += 1
        self.times.append(float(times[0]))
        ones = [1] * (x.ndim - 2)
        sigma = times.to(x.dtype).reshape(-1, 1, *ones) / 1000
        shift = cond.to(x.dtype).reshape(len(x), -1, *ones)
        return torch.sin(2 * x + shift + 3 * sigma) + (1 - sigma) * x / 2 - shift


def noise(batch: int = 3, shape: Sequence[int] = SHAPE, seed: int = 0) -> Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def conditions(latents: Tensor) -> tuple[Tensor, Tensor]:
    # a condition follows its sample, so that a batch may be cut anywhere
    cond = latents.reshape(*latents.shape[:2], -1).mean(dim=-1)
    return cond, torch.zeros_like(cond)


def run(
    policies: Sequence[Policy] = (),
    *,
    latents: Tensor | None = None,
    num_steps: int = 8,
    sigmas: Sequence[float] | None = None,
    solver: Any = None,
    guidance: Any = None,
    network: Any = None,
    first: int = 0,
    model: dict[str, str] | None = None,
) -> Result:
    x = noise() if latents is None else latents
    chosen = solver if solver is not None else FlowEuler()
    cond, uncond = conditions(x)
    loop = SamplingLoop(
        Engine(policies), chosen, guidance if guidance is not None else NoGuidance()
    )
    request = Request(
        latents=x,
        cond=cond,
        uncond=uncond,
        schedule=chosen.schedule(num_steps, sigmas),
        first=first,
        model=model if model is not None else {"class": "Swirl"},
    )
    return loop.run(network if network is not None else Swirl(), request)


def calibrate(**options: Any) -> Profile:
    (profile,) = run([ResidualProfiler()], **options).emitted
    return profile


def plain(
    latents: Tensor, num_steps: int = 8, scale: float | None = None, network: Any = None
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """A hand-written Euler loop that knows nothing of the framework: every x, every output."""
    network = network if network is not None else Swirl()
    cond, uncond = conditions(latents)
    schedule = FlowEuler().schedule(num_steps)
    x, xs = latents, [latents]
    outputs: dict[str, list[Tensor]] = {"cond": [], "uncond": []}
    for i in range(num_steps):
        times = torch.full((len(x),), schedule.times[i])
        v = network(x, times, cond)
        outputs["cond"].append(v)
        if scale is not None:
            other = network(x, times, uncond)
            outputs["uncond"].append(other)
            v = other + scale * (v - other)
        x = x + (schedule.sigmas[i + 1] - schedule.sigmas[i]) * v
        xs.append(x)
    return xs, outputs


def from_errors(errors: Tensor, **fingerprint: str) -> Profile:
    """A profile of one sample and one branch with exactly these pair errors, `[T, T]`."""
    steps = len(errors)
    pairs = {"ratio": errors.double()[None].clone()}
    for name in ("phi_velocity", "phi_difference"):
        pairs[name] = pairs["ratio"].clamp(0, 1)
    zeros = torch.zeros(1, steps, steps, 1, dtype=torch.float64)
    moments = dict.fromkeys(("v", "vv", "e", "ee", "ve"), zeros)
    ones = torch.ones(1, steps, dtype=torch.float64)
    return Profile(
        kind=KIND.name,
        fingerprint={"num_steps": str(steps), "branches": "cond", **fingerprint},
        statistics={"samples": ones, "elements": ones, **pairs, **moments},
        samples=1,
    )


def drive(policies: Sequence[Policy], stop_after: int, fail: bool = False) -> Session:
    """Two steps by hand, stopped after so many, with or without an error; the closed session."""
    info = SessionInfo(
        sigmas=(1.0, 0.5, 0.0),
        times=(1000.0, 500.0),
        shape=(1, 2),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    x = torch.ones(1, 2)
    session = Engine(policies).session(info)
    try:
        with session:
            for index in range(stop_after):
                start, end = info.sigmas[index : index + 2]
                session.begin(Interval(index, start, end, 1000 * start, 1000 * end))
                session.forward(x, lambda: x + 1)
                session.settle()
                session.end(x)
            if fail:
                raise RuntimeError("the driver broke")
    except RuntimeError as error:
        assert str(error) == "the driver broke"  # noqa: PT017
    assert info.states._states == {}
    return session


@pytest.fixture(scope="session")
def world() -> SimpleNamespace:
    return SimpleNamespace(
        Swirl=Swirl,
        noise=noise,
        conditions=conditions,
        run=run,
        calibrate=calibrate,
        plain=plain,
        from_errors=from_errors,
        drive=drive,
        cfg=CFG(scale=3.0),
    )
