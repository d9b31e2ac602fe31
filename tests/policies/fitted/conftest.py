"""Networks whose trajectories a fit can reproduce exactly, and calibration on them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from erta_framework import CFG, Engine, FlowEuler, Request, Sampler, SamplingLoop
from erta_framework.sampling import sample_noise
from erta_framework.testing import AffineFlow, GaussianMixtureFlow

SHAPE = (3, 2, 4, 4)
PROMPTS = [f"sample {k}" for k in range(8)]


class Parabola:
    """Velocity a + b sigma + c sigma^2, other a, b, c for each sample, whatever the latents."""

    def __call__(self, x, times, cond):
        sigma = (times.to(x.dtype) / 1000).reshape(-1, 1, 1, 1, 1)
        parts = [cond[:, k].to(x.dtype).reshape(-1, 1, 1, 1, 1) for k in range(3)]
        base = parts[0] + parts[1] * sigma + parts[2] * sigma**2
        return base * torch.linspace(0.5, 1.5, x[0].numel(), dtype=x.dtype).reshape(1, *SHAPE)


def request(batch=4, copies=1, steps=12, dtype=torch.float32, seed=0):
    toy = GaussianMixtureFlow(SHAPE)
    names = [f"{seed} {k}" for k in range(batch)]
    noise = sample_noise(SHAPE, [seed + k for k in range(batch)]).to(dtype)
    return Request(
        latents=torch.cat([noise] * copies),
        cond=torch.cat([toy.encode(names)] * copies),
        uncond=torch.cat([toy.encode([""] * batch)] * copies),
        schedule=FlowEuler().schedule(steps),
        model=toy.fingerprint(),
    )


def run(policies, network=None, guidance=None, **options):
    loop = SamplingLoop(Engine(policies), FlowEuler(), guidance or CFG(scale=2.0))
    return loop.run(network or GaussianMixtureFlow(SHAPE), request(**options))


def sampler(policies=(), steps=12, guidance=None, batch=8, **options):
    return Sampler(
        policies,
        guidance=guidance or CFG(scale=2.0),
        num_steps=steps,
        batch_size=batch,
        accelerator="cpu",
        **options,
    )


def fit(profiler, model=None, prompts=PROMPTS, **options):
    chosen = model or GaussianMixtureFlow(SHAPE)
    return sampler(**options).calibrate(chosen, prompts, profiler=profiler)


@pytest.fixture(scope="session")
def field():
    return SimpleNamespace(
        Parabola=Parabola,
        AffineFlow=AffineFlow,
        mixture=GaussianMixtureFlow(SHAPE),
        shape=SHAPE,
        prompts=PROMPTS,
        request=request,
        run=run,
        sampler=sampler,
        fit=fit,
    )
