"""Toy networks and drivers for the tests of the core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_framework import (
    Engine,
    FlowEuler,
    NoGuidance,
    Policy,
    Request,
    Result,
    Reuse,
    SamplingLoop,
    SessionInfo,
    Traits,
    hookimpl,
)


class CountingNet:
    """A network of products and sums only, so that a row's output depends on that row alone.

    It counts its calls and remembers the times and conditions that it was given.
    """

    latent_shape = (2, 3, 3)

    def __init__(self) -> None:
        self.calls = 0
        self.times: list[float] = []
        self.conditions: list[Tensor] = []

    def __call__(self, x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        self.calls += 1
        self.times.append(float(timestep[0]))
        self.conditions.append(embeds)
        ones = (-1, *[1] * (x.ndim - 1))
        time = (timestep / 1000.0).reshape(ones).to(x.dtype)
        pull = embeds.reshape(embeds.shape[0], -1)[:, 0].reshape(ones).to(x.dtype)
        return 0.5 * x - 0.125 * x * x.abs() + pull * (1.0 + time) + 0.25 * time * time

    def fingerprint(self) -> dict[str, str]:
        return {"class": "CountingNet"}

    def encode(self, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([[len(prompt) / 10.0] for prompt in prompts])


class Driven:
    """The result of one run of the loop, and the network that it ran."""

    def __init__(self, result: Result, network: Any) -> None:
        self.result = result
        self.network = network
        self.sample = result.sample
        self.trace = result.trace


def noise(batch: int = 2, shape: tuple[int, ...] = (2, 3, 3), seed: int = 0) -> Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def run_loop(
    policies: Sequence[Policy] = (),
    *,
    steps: int = 8,
    sigmas: Sequence[float] | None = None,
    solver: Any = None,
    guidance: Any = None,
    batch: int = 2,
    first: int = 0,
    network: Any = None,
    latents: Tensor | None = None,
    observe: Any = None,
) -> Driven:
    solver = solver or FlowEuler()
    network = network or CountingNet()
    request = Request(
        latents=noise(batch) if latents is None else latents,
        cond=torch.linspace(-1.0, 1.0, batch)[:, None],
        uncond=torch.linspace(0.5, 0.25, batch)[:, None],
        schedule=solver.schedule(steps, sigmas),
        first=first,
        model={"class": "CountingNet"},
        request_id="toy",
    )
    loop = SamplingLoop(Engine(policies), solver, guidance or NoGuidance())
    return Driven(loop.run(network, request, observe), network)


def make_info(steps: int = 4, **facts: Any) -> SessionInfo:
    sigmas = tuple(1.0 - i / steps for i in range(steps + 1))
    values: dict[str, Any] = {
        "sigmas": sigmas,
        "times": tuple(1000.0 * s for s in sigmas[:-1]),
        "shape": (1, 2, 3),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "request_id": "by hand",
    }
    return SessionInfo(**{**values, **facts})


class ReuseOn(Policy):
    """Reuses on the listed steps; known in advance."""

    traits = Traits(static=True)
    steps: tuple[int, ...] = ()

    @hookimpl
    def decide(self, step):
        return Reuse("listed") if step.index in self.steps else None


@pytest.fixture
def net() -> CountingNet:
    return CountingNet()


@pytest.fixture
def new_net() -> Callable[[], CountingNet]:
    return CountingNet


@pytest.fixture
def run() -> Callable[..., Driven]:
    return run_loop


@pytest.fixture
def info() -> Callable[..., SessionInfo]:
    return make_info


@pytest.fixture
def reuse_on() -> type[ReuseOn]:
    return ReuseOn


@pytest.fixture
def make_noise() -> Callable[..., Tensor]:
    return noise
