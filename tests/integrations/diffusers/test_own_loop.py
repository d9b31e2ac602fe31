"""The engine cannot tell the own loop from a pipeline: both give the same latents, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
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
    Request,
    SamplingLoop,
    Schedule,
)
from erta_framework.guidance import Guidance
from erta_integrations.diffusers import attach
from erta_integrations.diffusers.tiny import FAMILIES, drawn
from erta_policies.ertacache import SkipPolicy, TimestepAdjuster

SKIP = SkipPolicy(steps=(0, 1, 4))
WARP = TimestepAdjuster(phi=(0.9, 1.0, 0.7, 0.63, 1.0, 0.8, 0.9, 1.0))
POLICIES: dict[str, list[Policy]] = {
    "none": [],
    "skip": [SKIP],
    "warp": [SKIP, WARP],
    "warp-actual": [SKIP, TimestepAdjuster(phi=WARP.phi, network_time="actual")],
}
STEPS = 8


@dataclass(frozen=True, kw_only=True)
class SingleEuler(FlowEuler):
    """Euler with the step size rounded as diffusers does: both sigmas to float32 first."""

    def step(self, x: Tensor, output: Tensor, interval: Interval, state: Any) -> tuple[Tensor, Any]:
        size = torch.tensor(interval.end) - torch.tensor(interval.start)
        return x + size * output, None


def grid(scheduler: Any) -> Schedule:
    """The pipeline's grid of its last request."""
    sigmas = tuple(scheduler.sigmas.tolist())
    return Schedule(sigmas, (*scheduler.timesteps.tolist(), 0.0))


def wan() -> tuple[Any, dict[str, Any], Any, Request, Guidance]:
    family = FAMILIES["wan-euler"]
    pipe, latents = family.build(), drawn(1, 16, 3, 2, 2, seed=3)
    inputs = family.inputs(1)
    family.run(pipe, STEPS)

    def network(x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        call = {"hidden_states": x, "timestep": times, "encoder_hidden_states": condition}
        return pipe.transformer(**call, return_dict=False)[0]

    request = Request(
        latents=latents,
        cond=inputs["prompt_embeds"],
        uncond=inputs["negative_prompt_embeds"],
        schedule=grid(pipe.scheduler),
    )
    return pipe, {**inputs, **family.size}, network, request, CFG(scale=5.0)


def flux() -> tuple[Any, dict[str, Any], Any, Request, Guidance]:
    family = FAMILIES["flux"]
    pipe, latents = family.build(), drawn(1, 16, 4, seed=3)
    inputs = family.inputs(1)
    family.run(pipe, STEPS)
    ids = pipe._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32)

    def network(x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        return pipe.transformer(
            hidden_states=x,
            timestep=times / 1000,
            guidance=None,
            pooled_projections=inputs["pooled_prompt_embeds"],
            encoder_hidden_states=condition,
            txt_ids=torch.zeros(condition.shape[1], 3),
            img_ids=ids,
            return_dict=False,
        )[0]

    schedule = grid(pipe.scheduler)
    request = Request(latents=latents, cond=inputs["prompt_embeds"], schedule=schedule)
    return pipe, {**inputs, **family.size}, network, request, NoGuidance()


def hunyuan_video() -> tuple[Any, dict[str, Any], Any, Request, Guidance]:
    family = FAMILIES["hunyuan-video"]
    pipe, inputs = family.build(), family.inputs(1)
    latents = drawn(*family.run(pipe, STEPS).shape, seed=3)

    def network(x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        return pipe.transformer(
            hidden_states=x,
            timestep=times,
            encoder_hidden_states=condition,
            encoder_attention_mask=inputs["prompt_attention_mask"],
            pooled_projections=inputs["pooled_prompt_embeds"],
            guidance=torch.tensor([6.0]) * 1000.0,
            return_dict=False,
        )[0]

    schedule = grid(pipe.scheduler)
    request = Request(latents=latents, cond=inputs["prompt_embeds"], schedule=schedule)
    return pipe, {**inputs, **family.size}, network, request, NoGuidance()


@pytest.mark.parametrize("policies", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("prepare", [wan, flux, hunyuan_video])
def test_own_loop_equals_pipeline(prepare: Any, policies: list[Policy]) -> None:
    """Bit for bit with the solver that rounds step sizes as diffusers does.

    `FlowEuler` subtracts the sigmas of a moved grid in double precision and diffusers holds them
    in float32, so a time-warp agrees only to rounding there; without one they are equal too,
    because the difference of two float32 sigmas rounds alike.
    """
    pipe, arguments, network, request, guidance = prepare()
    with attach(pipe, policies) as run:
        sample = pipe(
            **arguments,
            num_inference_steps=STEPS,
            latents=request.latents,
            output_type="latent",
            return_dict=False,
        )[0]
    engine = Engine(policies)
    single = SamplingLoop(engine, SingleEuler(), guidance).run(network, request)
    double = SamplingLoop(engine, FlowEuler(), guidance).run(network, request)
    assert torch.equal(single.sample, sample)
    if len(policies) > 1:
        assert not torch.equal(sample, plain_skip(prepare))
        torch.testing.assert_close(double.sample, sample, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(double.sample, sample)
    (trace,) = run.traces
    assert trace.network_calls == single.trace.network_calls
    assert [(s.index, s.start, s.end, s.time) for s in trace.steps] == [
        (s.index, s.start, s.end, s.time) for s in single.trace.steps
    ]
    assert [(c.index, c.branch, c.computed, c.reason, c.source) for c in trace.calls()] == [
        (c.index, c.branch, c.computed, c.reason, c.source) for c in single.trace.calls()
    ]


def plain_skip(prepare: Any) -> Tensor:
    """The sample of the same schedule without a time-warp."""
    _, _, network, request, guidance = prepare()
    return SamplingLoop(Engine([SKIP]), FlowEuler(), guidance).run(network, request).sample
