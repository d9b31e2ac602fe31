"""Reuse of the output against reuse of the residual, on the trained UNet that predicts noise."""

from __future__ import annotations

import pytest

from erta_bench.shapes_image import load_unet
from erta_framework import Policy
from erta_framework.metrics import psnr
from erta_policies.ertacache import ERTACache, ResidualProfiler, ResidualReuse, SkipPolicy

STEPS, SAMPLES = 50, 8


@pytest.mark.slow
def test_the_output_is_worth_ten_decibels_on_a_trained_unet() -> None:
    """`StableDiffusionPipeline`, DDIM, guidance; other prompts and noise than calibrated on."""
    model = load_unet()
    calibration, prompts = model.demo_prompts()
    made = model.pipeline_sampler([], num_steps=STEPS, batch_size=SAMPLES)
    profile = made.calibrate(model, calibration[:SAMPLES], profiler=ResidualProfiler())

    def draw(policies: list[Policy]):  # type: ignore[no-untyped-def]
        sampler = model.pipeline_sampler(policies, num_steps=STEPS, batch_size=SAMPLES)
        return sampler.sample(model, prompts[:SAMPLES], seed=100).samples

    full = draw([])
    for calls in (25, 17):
        rows: dict[str, Policy] = {
            "evenly spaced": SkipPolicy(evenly=calls),
            "ERTACache": ERTACache(profile=profile, calls=calls, linearizer=False),
        }
        for name, policy in rows.items():
            residual, output = (
                float(psnr(draw([policy, *more]), full).mean()) for more in ([ResidualReuse()], [])
            )
            print(f"{name} at {calls} calls: residual {residual:.1f} dB, output {output:.1f} dB")
            assert output > residual + 8.0
